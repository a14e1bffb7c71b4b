"""Messages to prompt: Go templates (a Modelfile's TEMPLATE) and sandboxed Jinja (a GGUF's own), one interface."""

from __future__ import annotations

from functools import lru_cache

from modelctl.template.conversation import Conversation, Message
from modelctl.template.limits import TemplateLimit, time_limit
from modelctl.template.prompt import Piece, Template, fit, pieces

__all__ = ["Conversation", "Message", "Piece", "Template", "TemplateLimit", "fit", "load", "pieces", "time_limit"]

CHATML = """\
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}\
{{ '<|im_start|>assistant\\n' }}"""


def load(source: str | None, *, gguf_template: str | None, bos: str = "", eos: str = "") -> Template:
    """The template to use: a Modelfile's Go `source`, else the GGUF's Jinja, else plain ChatML.

    Parsed once, kept by text. Raises `BadRequest` with line and column when it does not parse.
    """
    if source:
        raise NotImplementedError("Go templates")
    return _load_jinja(gguf_template or CHATML, bos, eos)


@lru_cache(maxsize=64)
def _load_jinja(source: str, bos: str, eos: str) -> Template:
    from modelctl.template.jinja import JinjaTemplate

    return JinjaTemplate(source, bos, eos)
