"""Go templates that are wrong: where, and what the message says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.template import Conversation, Message, TemplateLimit, load
from modelctl.template.go import GoTemplateError


@pytest.mark.parametrize(
    ("source", "line", "column", "reason"),
    [
        ("{{ .Prompt", 1, 1, "unclosed action"),
        ("a\n{{ .Prompt", 2, 1, "unclosed action"),
        ("a\r\n  {{ nope }}", 2, 6, "function 'nope' is not defined"),
        ("{{ if .Prompt }}\nx", 1, 4, "if is never closed"),
        ("{{ range .Messages }}{{ if .Role }}{{ end }}", 1, 4, "range is never closed"),
        ("é{{ end }}", 1, 5, "unexpected {{end}}"),
        ("{{ else }}", 1, 4, "unexpected {{else}}"),
        ("{{ if .A }}{{ else }}{{ else }}{{ end }}", 1, 25, "expected {{end}}, found a second {{else}}"),
        ("{{ if }}{{ end }}", 1, 7, "missing value for if"),
        ("{{}}", 1, 3, "missing value for command"),
        ("{{ $x }}", 1, 4, "undefined variable $x"),
        ("{{ if .A }}{{ $x := 1 }}{{ end }}{{ $x }}", 1, 37, "undefined variable $x"),
        ('{{ "abc }}', 1, 4, "unterminated quoted string"),
        ("{{ `abc }}", 1, 4, "unterminated raw quoted string"),
        ("{{ 'abc }}", 1, 4, "unterminated character constant"),
        (r'{{ "\q" }}', 1, 4, r"invalid escape \q in a string"),
        ("{{ 08 }}", 1, 4, "illegal number syntax: 08"),
        ("{{ 12x }}", 1, 4, "bad number syntax: '12x'"),
        ("{{ .A% }}", 1, 4, "bad character '%' after '.A'"),
        ("{{ é§ }}", 1, 4, "bad character '§' after 'é'"),
        ("{{ § }}", 1, 4, "unrecognized character in action: '§'"),
        ("{{ (.A }}", 1, 8, "unclosed left paren"),
        ("{{ .A) }}", 1, 6, "unexpected right paren"),
        ("{{/* a", 1, 1, "unclosed comment"),
        ("{{/* a */ b }}", 1, 10, "comment ends before closing delimiter"),
        ("{{ break }}", 1, 4, "{{break}} outside {{range}}"),
        ('{{ template "x" . }}', 1, 4, 'template "x" is not defined'),
        ("{{ template x }}", 1, 13, "unexpected 'x' in template"),
        ('{{ define "a" }}1{{ end }}\n{{ define "a" }}2{{ end }}', 2, 1, 'template "a" is defined twice'),
        ('{{ if .A }}{{ define "a" }}{{ end }}{{ end }}', 1, 12, "unexpected define in if"),
        ("{{ .A | 3 }}", 1, 9, "non executable command in pipeline stage 2"),
        ("{{ $a, $b := .A }}", 1, 6, "too many declarations in command"),
        ("{{ not 1 2 }}", 1, 4, "wrong number of args for not: want 1 got 2"),
        ("{{ nil }}", 1, 4, "nil is not a command"),
    ],
)
def test_what_does_not_parse(source: str, line: int, column: int, reason: str) -> None:
    with pytest.raises(GoTemplateError) as caught:
        load(source, gguf_template=None)
    assert (caught.value.line, caught.value.column, caught.value.reason) == (line, column, reason)
    assert caught.value.message == f"the template is wrong at line {line}, column {column}: {reason}"


@pytest.mark.parametrize(
    ("source", "column", "reason"),
    [
        ("{{ .Prompt.x }}", 4, "can't evaluate field x in type string"),
        ("{{ .Nope.x }}", 4, "nil pointer evaluating .x"),
        ("{{ .Prompt .System }}", 4, "can't give argument to what is not a function"),
        ("{{ len 3 }}", 4, "error calling len: len of type int"),
        ("{{ index .Prompt 99 }}", 4, "error calling index: index out of range: 99"),
        ("{{ printf 1 }}", 4, "error calling printf: expected string; got int"),
        ('{{ eq 1 "1" }}', 4, "error calling eq: incompatible types for comparison: int and string"),
        ("{{ range .Prompt }}{{ end }}", 4, "range can't iterate over a value of type string"),
        ("{{ call .Prompt }}", 4, "error calling call: non-function of type string"),
    ],
)
def test_what_does_not_run(source: str, column: int, reason: str) -> None:
    template = load(source, gguf_template=None)
    with pytest.raises(GoTemplateError) as caught:
        template.render(Conversation([Message("user", "a")]))
    assert (caught.value.column, caught.value.reason) == (column, reason)


def test_an_unknown_field_names_the_known_ones() -> None:
    template = load("{{ range .Messages }}{{ .Text }}{{ end }}", gguf_template=None)
    with pytest.raises(GoTemplateError, match=r"can't evaluate field Text in type Message: it has \.Role \.Content"):
        template.render(Conversation([Message("user", "a")]))


def test_an_unknown_function_lists_the_known_ones() -> None:
    with pytest.raises(GoTemplateError) as caught:
        load("{{ upper .Prompt }}", gguf_template=None)
    assert "currentDate" in (caught.value.hint or "")


FRAGMENTS = r"""{{ {{- }} -}} ( ) | := = , . .Messages .Prompt $ $x " ` ' \ 0x1 1.5 -3 nil true if with range else end
define template block break continue "a" printf len index slice eq and or not print json /* */ é - %"""


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([*FRAGMENTS.split(), " ", "\n", "{{", "}}"]), max_size=25))
def test_any_text_renders_or_is_a_typed_error(parts: list[str]) -> None:
    try:
        prompt = load("".join(parts), gguf_template=None).render(Conversation([Message("user", "a")]))
    except (GoTemplateError, TemplateLimit) as error:
        assert error.message
    else:
        prompt.encode()
