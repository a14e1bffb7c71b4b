"""Messages to prompt: Go templates (a Modelfile's TEMPLATE) and sandboxed Jinja (a GGUF's own), one interface."""

from __future__ import annotations

from functools import lru_cache

from modelctl.template.conversation import Conversation, Message
from modelctl.template.limits import TemplateLimit, time_limit
from modelctl.template.prompt import Piece, Template, fit, pieces

__all__ = [
    "Conversation",
    "Message",
    "Piece",
    "Template",
    "TemplateLimit",
    "fit",
    "load",
    "pieces",
    "time_limit",
    "variables",
]

CHATML = """\
{{- range $i, $_ := .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}{{ if or (ne .Role "assistant") (gt (len (slice $.Messages $i)) 1) }}<|im_end|>
{{ if eq (len (slice $.Messages $i)) 1 }}<|im_start|>assistant
{{ end }}{{ end }}{{ end }}"""


def load(source: str | None, *, gguf_template: str | None, bos: str = "", eos: str = "") -> Template:
    """The template to use: a Modelfile's Go `source`, else the GGUF's Jinja, else plain ChatML.

    Parsed once, kept by text. Raises `BadRequest` with line and column when it does not parse.
    """
    if not source and gguf_template:
        return _load_jinja(gguf_template, bos, eos)
    return _load_go(source or CHATML)


def variables(source: str) -> set[str]:
    """The names a Go template uses, without the dot: "Messages", "Suffix", "Tools", "Think" say what a model can do."""
    from modelctl.template.go import variables

    return variables(source)


@lru_cache(maxsize=64)
def _load_go(source: str) -> Template:
    from modelctl.template.go import GoTemplate

    return GoTemplate(source)


@lru_cache(maxsize=64)
def _load_jinja(source: str, bos: str, eos: str) -> Template:
    from modelctl.template.jinja import JinjaTemplate

    return JinjaTemplate(source, bos, eos)
