// Renders conversations with the real text/template: the source of the goldens, and the judge of the fuzz runs.
//
// One JSON case a line on stdin: {"template": "...", "conversation": {...}} or {"template": "...", "data": ...}.
// One JSON answer a line on stdout: {"output": "..."} or {"error": "...", "stage": "parse" or "run"}.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

type Conversation struct {
	Messages []struct {
		Role       string
		Content    string
		Thinking   string
		ToolCalls  []ToolCall `json:"tool_calls"`
		ToolName   string     `json:"tool_name"`
		ToolCallID string     `json:"tool_call_id"`
	}
	Suffix string
	Tools  Tools
	Think  any
}

type Case struct {
	Template     string
	Conversation *Conversation
	Data         any
}

type Answer struct {
	Output string `json:"output"`
	Error  string `json:"error,omitempty"`
	Stage  string `json:"stage,omitempty"`
}

var functions = template.FuncMap{
	"json":          asJSON,
	"currentDate":   func(...string) string { return time.Now().Format("2006-01-02") },
	"yesterdayDate": func(...string) string { return time.Now().AddDate(0, 0, -1).Format("2006-01-02") },
	"toTypeScriptType": func(value any) string {
		if property, ok := value.(ToolProperty); ok {
			return property.ToTypeScriptType()
		}
		return "any"
	},
	"html":     func(args ...any) string { return template.HTMLEscaper(blank(args)...) },
	"js":       func(args ...any) string { return template.JSEscaper(blank(args)...) },
	"urlquery": func(args ...any) string { return template.URLQueryEscaper(blank(args)...) },
}

// blank has nothing for what is not set, where these functions would print "<no value>".
func blank(args []any) []any {
	for i, arg := range args {
		if arg == nil {
			args[i] = ""
		}
	}
	return args
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var c Case
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			panic(err)
		}
		out.Encode(answer(c))
	}
}

func answer(c Case) Answer {
	t, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(c.Template)
	if err != nil {
		return Answer{Error: err.Error(), Stage: "parse"}
	}
	output, err := "", error(nil)
	if c.Conversation != nil {
		output, err = chat(t, c.Conversation)
	} else {
		output, err = run(t, c.Data)
	}
	if err != nil {
		return Answer{Error: err.Error(), Stage: "run"}
	}
	return Answer{Output: output}
}

// Data that is not set prints nothing: Go's "<no value>" is of no use in a prompt.
func run(t *template.Template, data any) (string, error) {
	var b strings.Builder
	err := t.Execute(&b, data)
	return strings.ReplaceAll(b.String(), "<no value>", ""), err
}

func chat(t *template.Template, c *Conversation) (string, error) {
	think := map[string]any{"Think": c.Think != nil && c.Think != false, "ThinkLevel": "", "IsThinkSet": c.Think != nil}
	if level, ok := c.Think.(string); ok {
		think["ThinkLevel"] = level
	}
	system, messages := collate(c)
	used := names(t)
	if !used["Messages"] && !used["Response"] {
		t = template.Must(t.Parse(t.Tree.Root.String() + "{{ .Response }}"))
	}
	switch {
	case c.Suffix != "":
		prompt := ""
		for _, m := range messages {
			if m.Role == "user" {
				prompt = m.Content
			}
		}
		return run(t, with(think, map[string]any{"Prompt": prompt, "Suffix": c.Suffix, "Response": ""}))
	case used["Messages"]:
		return run(t, with(think, map[string]any{"System": system, "Messages": messages, "Tools": c.Tools, "Response": ""}))
	}
	return legacy(t, messages, think)
}

func with(a, b map[string]any) map[string]any {
	for key, value := range a {
		b[key] = value
	}
	return b
}

func collate(c *Conversation) (string, []*Message) {
	var system []string
	var messages []*Message
	for _, m := range c.Messages {
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		if n := len(messages); n > 0 && messages[n-1].Role == m.Role && m.Role != "tool" {
			messages[n-1].Content += "\n\n" + m.Content
			continue
		}
		messages = append(messages, &Message{
			Role: m.Role, Content: m.Content, Thinking: m.Thinking,
			ToolCalls: m.ToolCalls, ToolName: m.ToolName, ToolCallID: m.ToolCallID,
		})
	}
	return strings.Join(system, "\n\n"), messages
}

// legacy runs the template once for each exchange, and for the last one up to its .Response.
func legacy(t *template.Template, messages []*Message, think map[string]any) (string, error) {
	var b strings.Builder
	system, prompt, response := "", "", ""
	flush := func(t *template.Template) error {
		data := map[string]any{"System": system, "Prompt": prompt, "Response": response}
		output, err := run(t, with(think, data))
		b.WriteString(output)
		system, prompt, response = "", "", ""
		return err
	}
	for _, m := range messages {
		var err error
		switch m.Role {
		case "system":
			if prompt != "" || response != "" {
				err = flush(t)
			}
			system = m.Content
		case "user":
			if response != "" {
				err = flush(t)
			}
			prompt = m.Content
		case "assistant":
			response = m.Content
		}
		if err != nil {
			return "", err
		}
	}
	cutList(t.Tree.Root)
	err := flush(t)
	return b.String(), err
}

// cutList drops what follows the first action that prints .Response, and says whether there is one.
func cutList(list *parse.ListNode) bool {
	if list == nil {
		return false
	}
	for i, node := range list.Nodes {
		if cutNode(node) {
			list.Nodes = list.Nodes[:i+1]
			return true
		}
	}
	return false
}

func cutNode(node parse.Node) bool {
	switch n := node.(type) {
	case *parse.ActionNode:
		return len(n.Pipe.Decl) == 0 && strings.Contains(n.Pipe.String(), ".Response")
	case *parse.IfNode:
		return cutBranch(&n.BranchNode)
	case *parse.WithNode:
		return cutBranch(&n.BranchNode)
	case *parse.RangeNode:
		return cutBranch(&n.BranchNode)
	}
	return false
}

func cutBranch(n *parse.BranchNode) bool {
	if cutList(n.List) {
		n.ElseList = nil
		return true
	}
	return cutList(n.ElseList)
}

// names finds the two fields that decide how a template runs.
func names(t *template.Template) map[string]bool {
	used := map[string]bool{}
	for _, each := range t.Templates() {
		text := each.Tree.Root.String()
		for _, name := range []string{"Messages", "Response"} {
			used[name] = used[name] || strings.Contains(text, "."+name)
		}
	}
	return used
}
