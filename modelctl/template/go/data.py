"""Messages, tools and tool calls as the structs that templates name: .Role, .Function.Name, .Parameters.Required ..."""

from __future__ import annotations

from typing import Any

import msgspec

from modelctl.template.conversation import Message
from modelctl.template.go.values import FieldSpec, JSONList, JSONMap, Kind, OrderedMap, Struct, TypeNames

MAX_EXACT = 1 << 53  # integers beyond this have no exact float64


def _plain(*names: str) -> tuple[FieldSpec, ...]:
    return tuple(FieldSpec(name, name) for name in names)


MESSAGE = Kind("Message", _plain("Role", "Content", "Thinking", "Images", "ToolCalls", "ToolName", "ToolCallID"))
TOOL_CALL = Kind("ToolCall", _plain("ID", "Function"))
CALL_FUNCTION = Kind("ToolCallFunction", _plain("Index", "Name", "Arguments"))
TOOL = Kind(
    "Tool", (FieldSpec("Type", "type"), FieldSpec("Items", "items", True), FieldSpec("Function", "function")), True
)
FUNCTION = Kind(
    "ToolFunction",
    (FieldSpec("Name", "name"), FieldSpec("Description", "description"), FieldSpec("Parameters", "parameters")),
    True,
)
PARAMETERS = Kind(
    "ToolFunctionParameters",
    (
        FieldSpec("Type", "type"),
        FieldSpec("Defs", "$defs", True),
        FieldSpec("Items", "items", True),
        FieldSpec("Required", "required", True),
        FieldSpec("Properties", "properties"),
    ),
    True,
)
PROPERTY = Kind(
    "ToolProperty",
    (
        FieldSpec("AnyOf", "anyOf", True),
        FieldSpec("Type", "type", True),
        FieldSpec("Items", "items", True),
        FieldSpec("Description", "description", True),
        FieldSpec("Enum", "enum", True),
        FieldSpec("Properties", "properties", True),
        FieldSpec("Required", "required", True),
    ),
    True,
)


def message(m: Message) -> Struct:
    return Struct(
        MESSAGE,
        {
            "Role": m.role,
            "Content": m.content,
            "Thinking": m.thinking,
            "Images": [],
            "ToolCalls": [_tool_call(call) for call in m.tool_calls],
            "ToolName": m.tool_name,
            "ToolCallID": m.tool_call_id,
        },
    )


def tools(defined: list[dict[str, Any]]) -> JSONList:
    return JSONList(_tool(tool) for tool in defined)


def _tool_call(call: dict[str, Any]) -> Struct:
    function = _mapping(call.get("function"))
    values = {
        "Index": int(function.get("index") or 0),
        "Name": str(function.get("name", "")),
        "Arguments": _arguments(function.get("arguments")),
    }
    return Struct(TOOL_CALL, {"ID": str(call.get("id", "")), "Function": Struct(CALL_FUNCTION, values)})


def _arguments(value: Any) -> JSONMap:
    """OpenAI's clients send them as JSON text, Ollama's as an object."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            value = {}
    return JSONMap(decoded(_mapping(value)))


def _tool(tool: dict[str, Any]) -> Struct:
    return _struct(TOOL, tool, Function=_function(_mapping(tool.get("function"))), Type=tool.get("type", ""))


def _function(function: dict[str, Any]) -> Struct:
    parameters = _mapping(function.get("parameters"))
    properties = parameters.get("properties")
    made = _struct(
        PARAMETERS,
        parameters,
        Type=parameters.get("type", ""),
        Properties=JSONMap(_properties(properties)) if isinstance(properties, dict) else None,
        Required=parameters.get("required") or [],
    )
    name, description = function.get("name", ""), function.get("description") or ""
    return _struct(FUNCTION, function, Name=name, Description=description, Parameters=made)


def _properties(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: _property(_mapping(value)) for name, value in properties.items()}


def _property(schema: dict[str, Any]) -> Struct:
    kinds = schema.get("type", [])
    nested = schema.get("properties")
    return _struct(
        PROPERTY,
        schema,
        AnyOf=[_property(_mapping(part)) for part in schema.get("anyOf") or []],
        Type=TypeNames([kinds] if isinstance(kinds, str) else map(str, kinds or [])),
        Description=schema.get("description") or "",
        Enum=decoded(schema.get("enum") or []),
        Properties=OrderedMap(_properties(nested)) if isinstance(nested, dict) else None,
        Required=schema.get("required") or [],
    )


def _struct(kind: Kind, source: dict[str, Any], **made: Any) -> Struct:
    """Fields come from `made`, or as they are from `source`; what no field names is kept for the JSON."""
    values = {
        spec.name: made[spec.name] if spec.name in made else decoded(source.get(spec.json)) for spec in kind.fields
    }
    known = {spec.json for spec in kind.fields}
    return Struct(kind, values, {key: decoded(value) for key, value in source.items() if key not in known})


def decoded(value: Any) -> Any:
    """JSON as Go decodes it: numbers are float64. Integers too large for that stay whole."""
    match value:
        case bool():
            return value
        case int():
            return float(value) if abs(value) <= MAX_EXACT else value
        case list() | tuple():
            return [decoded(item) for item in value]
        case dict():
            return {str(key): decoded(item) for key, item in value.items()}
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
