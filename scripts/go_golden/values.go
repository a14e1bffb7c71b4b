package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// The types a template sees. Tools print as JSON at every level.

type Message struct {
	Role, Content, Thinking string
	Images                  []string
	ToolCalls               []ToolCall
	ToolName, ToolCallID    string
}

type ToolCall struct {
	ID       string
	Function ToolCallFunction
}

type ToolCallFunction struct {
	Index     int
	Name      string
	Arguments Arguments
}

type Arguments map[string]any

func (a Arguments) String() string { return asJSON(map[string]any(a)) }

type Tools []Tool

func (t Tools) String() string { return asJSON([]Tool(t)) }

type Tool struct {
	Type     string       `json:"type"`
	Items    any          `json:"items,omitempty"`
	Function ToolFunction `json:"function"`
}

func (t Tool) String() string { return asJSON(t) }

type ToolFunction struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Parameters  Parameters `json:"parameters"`
}

func (f ToolFunction) String() string { return asJSON(f) }

type Parameters struct {
	Type       string     `json:"type"`
	Defs       any        `json:"$defs,omitempty"`
	Items      any        `json:"items,omitempty"`
	Required   []string   `json:"required,omitempty"`
	Properties Properties `json:"properties"`
}

func (p Parameters) String() string { return asJSON(p) }

type Properties map[string]ToolProperty

func (p Properties) String() string { return asJSON(map[string]ToolProperty(p)) }

type ToolProperty struct {
	AnyOf       []ToolProperty `json:"anyOf,omitempty"`
	Type        TypeNames      `json:"type,omitempty"`
	Items       any            `json:"items,omitempty"`
	Description string         `json:"description,omitempty"`
	Enum        []any          `json:"enum,omitempty"`
	Properties  *Ordered       `json:"properties,omitempty"`
	Required    []string       `json:"required,omitempty"`
}

func (p ToolProperty) String() string { return asJSON(p) }

// Ordered is a map of properties in the order they were written.
type Ordered struct {
	keys   []string
	values []ToolProperty
}

func (o *Ordered) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var value ToolProperty
		if err := d.Decode(&value); err != nil {
			return err
		}
		o.keys, o.values = append(o.keys, key.(string)), append(o.values, value)
	}
	return nil
}

func (o Ordered) MarshalJSON() ([]byte, error) {
	parts := make([]string, len(o.keys))
	for i, key := range o.keys {
		parts[i] = asJSON(key) + ":" + asJSON(o.values[i])
	}
	return []byte("{" + strings.Join(parts, ",") + "}"), nil
}

// TypeNames is one name or several; one is written without brackets.
type TypeNames []string

func (t *TypeNames) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = TypeNames{one}
		return nil
	}
	var several []string
	err := json.Unmarshal(data, &several)
	*t = several
	return err
}

func (t TypeNames) MarshalJSON() ([]byte, error) {
	if len(t) == 1 {
		return json.Marshal(t[0])
	}
	return json.Marshal([]string(t))
}

func (t TypeNames) String() string {
	if len(t) < 2 {
		return strings.Join(t, "")
	}
	return fmt.Sprint([]string(t))
}

func asJSON(value any) string {
	data, _ := json.Marshal(value)
	return string(data)
}

var typescript = map[string]string{
	"string": "string", "number": "number", "integer": "number", "boolean": "boolean",
	"array": "any[]", "object": "Record<string, any>", "null": "null",
}

func (p ToolProperty) ToTypeScriptType() string {
	var names []string
	for _, option := range p.AnyOf {
		names = append(names, option.ToTypeScriptType())
	}
	if len(names) == 0 {
		for _, name := range p.Type {
			known, ok := typescript[name]
			if !ok {
				known = "any"
			}
			names = append(names, known)
		}
	}
	if len(names) == 0 {
		return "any"
	}
	return strings.Join(names, " | ")
}
