"""How a conversation goes through a Go template: Ollama's three ways, and where modelctl means to differ."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from modelctl.errors import BadRequest
from modelctl.template import Conversation, Message, load, variables

SYSTEM, A, B, C = ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")
LEGACY = "{{ .System }}|{{ .Prompt }}|{{ .Response }}<eot>"


def render(source: str, *messages: tuple[str, str], **more: Any) -> str:
    return load(source, gguf_template=None).render(Conversation([Message(*m) for m in messages], **more))


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ((A,), "|a|"),
        ((SYSTEM, A), "S|a|"),
        ((SYSTEM, A, B, C), "S|a|b<eot>|c|"),
        ((SYSTEM, A, B), "S|a|b"),
        ((A, SYSTEM, C), "|a|<eot>S|c|"),
        ((A, B, SYSTEM, C), "|a|b<eot>S|c|"),
        ((A, C), "|a\n\nc|"),
        ((SYSTEM,), "S||"),
        ((), "||"),
    ],
)
def test_the_legacy_loop(messages: tuple[tuple[str, str], ...], prompt: str) -> None:
    assert render(LEGACY, *messages) == prompt


@pytest.mark.parametrize(
    "source",
    [
        "[INST] {{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}[/INST] ",
        "[INST] {{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}[/INST] {{ .Response }}",
        '{{- range .Messages }}{{ if eq .Role "user" }}[INST] {{ .Content }}[/INST] '
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}',
    ],
)
def test_three_ways_to_write_one_template(source: str) -> None:
    chat = ("user", "Hello friend!"), ("assistant", "Hello human!"), ("user", "What is your name?")
    assert render(source, *chat) == "[INST] Hello friend![/INST] Hello human![INST] What is your name?[/INST] "


SUFFIX = "{{ if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>{{ else }}{{ .Prompt }}{{ end }}"


def test_a_suffix_fills_in_the_middle() -> None:
    assert render(SUFFIX, ("user", "def add("), suffix="return x") == "<PRE> def add( <SUF>return x <MID>"
    assert render(SUFFIX, ("user", ""), suffix="return x") == "<PRE>  <SUF>return x <MID>"
    assert render(SUFFIX, ("user", "hello")) == "hello"


@pytest.mark.parametrize("gguf_template", [None, "jinja"])
def test_a_template_without_a_suffix_refuses_one(gguf_template: str | None) -> None:
    with pytest.raises(BadRequest, match="can't fill in the middle"):
        load(None, gguf_template=gguf_template).render(Conversation([Message("user", "a")], suffix="b"))


def test_neighbours_of_one_role_merge_but_tool_results_do_not() -> None:
    source = "{{ .System }}!{{ range .Messages }}({{ .Role }} {{ .Content }}){{ end }}"
    chat = SYSTEM, ("system", "T"), A, C, ("tool", "1"), ("tool", "2")
    assert render(source, *chat) == "S\n\nT!(system S\n\nT)(user a\n\nc)(tool 1)(tool 2)"


def test_merged_assistant_messages_keep_their_calls() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    chat = [Message("user", "a"), Message("assistant", "x"), Message("assistant", tool_calls=[call])]
    source = "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}{{ end }}"
    assert load(source, gguf_template=None).render(Conversation(chat)) == "f"


def test_rendering_leaves_the_conversation_alone() -> None:
    conversation = Conversation([Message("user", "a"), Message("user", "b")])
    load(LEGACY, gguf_template=None).render(conversation)
    assert conversation == Conversation([Message("user", "a"), Message("user", "b")])


# where Ollama's ways are not worth copying


def test_what_is_not_set_prints_nothing() -> None:
    assert render("[{{ .Nonsense }}]{{ .Prompt }}", A) == "[]a"


def test_the_last_run_still_has_functions_and_templates() -> None:
    source = '{{ define "t" }}<{{ . }}>{{ end }}{{ currentDate | len }}{{ template "t" .Prompt }}{{ .Response }}.'
    assert render(source, A, B, C) == "10<a>b.10<c>"


def test_asking_for_the_response_cuts_nothing() -> None:
    assert render("{{ if .Response }}+{{ end }}{{ .Prompt }}={{ .Response }};", A, B, C) == "+a=b;c="


def test_the_prompt_is_never_cut() -> None:
    assert render("{{ if .Response }}{{ .Response }};{{ end }}{{ .Prompt }}=", A, B, C) == "b;a=c="


def test_the_cut_reaches_into_a_called_template() -> None:
    source = '{{ define "t" }}{{ .Prompt }}={{ .Response }};{{ end }}{{ template "t" . }}\n'
    assert render(source, A, B, C) == "a=b;\nc="


def test_the_cut_takes_the_other_branch_along() -> None:
    assert render("{{ if .Response }}{{ .Response }};{{ else }}?{{ end }}!", A, B) == "b"
    assert render("{{ .Prompt }}{{ if .Response }}{{ .Response }};{{ else }}?{{ end }}!", A) == "a"


def test_a_tool_result_between_users_loses_neither() -> None:
    assert render(LEGACY, A, ("tool", "x"), C) == "|a\n\nc|"


# values


def test_thinking() -> None:
    source = "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}{{ range .Messages }}{{ end }}"
    assert render(source, A) == "false  false"
    assert render(source, A, think=False) == "false  true"
    assert render(source, A, think=True) == "true  true"
    assert render(source, A, think="high") == "true high true"


def test_dates() -> None:
    before = date.today()
    prompt = render('{{ currentDate }} {{ currentDate "02 Jan" }} {{ yesterdayDate }}{{ .Prompt }}', ("user", ""))
    days = {f"{day} {day} {day - timedelta(days=1)}" for day in (before, date.today())}
    assert prompt in days


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"n": {"type": "integer", "minimum": 1}, "b": {"type": ["string", "null"]}},
        },
        "strict": True,
    },
}


def test_what_no_field_names_is_kept_in_the_json() -> None:
    assert render("{{ range .Messages }}{{ end }}{{ .Tools }}", A, tools=[TOOL]) == (
        '[{"type":"function","function":{"name":"f","description":"","parameters":{"type":"object","properties":'
        '{"b":{"type":["string","null"]},"n":{"type":"integer","minimum":1}},"additionalProperties":false},'
        '"strict":true}}]'
    )


def test_tools_by_field() -> None:
    source = (
        "{{ range .Messages }}{{ end }}{{ range .Tools }}{{ .Function.Name }}"
        "{{ range $name, $p := .Function.Parameters.Properties }} {{ $name }}:{{ $p.Type }}:{{ $p | toTypeScriptType }}"
        "{{ end }}{{ end }}"
    )
    assert render(source, A, tools=[TOOL]) == "f b:[string null]:string | null n:integer:number"


@pytest.mark.parametrize("tool", [{}, {"function": None}, {"function": {"parameters": []}}, {"function": 3}])
def test_odd_tools_are_no_crash(tool: dict[str, Any]) -> None:
    source = "{{ range .Messages }}{{ end }}{{ range .Tools }}{{ .Function.Name }}{{ . }}{{ end }}"
    assert '"function":{"name":""' in render(source, A, tools=[tool])


@pytest.mark.parametrize("arguments", [{"b": 1, "a": "<x>"}, '{"b": 1, "a": "<x>"}'])
def test_arguments_print_as_json_and_range_as_a_map(arguments: Any) -> None:
    calls = [{"id": "c1", "function": {"name": "f", "arguments": arguments}}]
    source = (
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }} {{ .Function.Arguments }} {{ json .Function.Arguments }}"
        "{{ range $k, $v := .Function.Arguments }} {{ $k }}={{ $v }}{{ end }}{{ .Function.Arguments.b }}"
        "{{ end }}{{ end }}"
    )
    conversation = Conversation([Message("assistant", tool_calls=calls)])
    prompt = load(source, gguf_template=None).render(conversation)
    assert prompt == r'c1 {"a":"\u003cx\u003e","b":1} {"a":"\u003cx\u003e","b":1} a=<x> b=11'


def test_integers_too_large_for_a_float_keep_their_digits() -> None:
    calls = [{"function": {"name": "f", "arguments": {"id": 12345678901234567891}}}]
    source = "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}{{ end }}"
    assert load(source, gguf_template=None).render(Conversation([Message("assistant", tool_calls=calls)])) == (
        '{"id":12345678901234567891}'
    )


@pytest.mark.parametrize("content", ["\ud800", "a\udc80b", "\udfff{}"])
def test_lone_surrogates_come_out_as_text(content: str) -> None:
    render("{{ .Prompt }}{{ len .Prompt }}{{ slice .Prompt 0 1 }}{{ json .Prompt }}", ("user", content)).encode()


def test_newer_go() -> None:
    assert render(
        "{{ range 3 }}{{ . }}{{ end }}{{ range $i := 2 }}{{ $i }}{{ end }}{{ range 0 }}{{ else }}!{{ end }}"
    ) == ("01201!")
    assert render("{{ with .Nope }}a{{ else with .Prompt }}{{ . }}{{ else }}c{{ end }}", A) == "a"


def test_variables_say_what_a_template_can_do() -> None:
    source = (
        '{{ define "x" }}{{ (.Tools).y }}{{ end }}{{ if $.Suffix }}{{ range .Messages }}{{ .Role }}{{ end }}{{ end }}'
    )
    assert variables(source) == {"Tools", "y", "Suffix", "Messages", "Role"}


def test_without_any_template_a_chat_is_chatml() -> None:
    template = load(None, gguf_template=None)
    assert template.render(Conversation([Message(*m) for m in (SYSTEM, A)])) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(Conversation([Message(*A), Message(*B)])).endswith("<|im_start|>assistant\nb")


def test_a_modelfiles_template_comes_before_the_gguf_s() -> None:
    assert load("{{ .Prompt }}!", gguf_template="jinja").render(Conversation([Message(*A)])) == "a!"
    assert load(None, gguf_template="jinja").render(Conversation([Message(*A)])) == "jinja"
    assert load("", gguf_template="jinja").render(Conversation([Message(*A)])) == "jinja"


def test_a_template_is_parsed_once() -> None:
    assert load("{{ .Prompt }}once", gguf_template=None) is load("{{ .Prompt }}once", gguf_template="other")
