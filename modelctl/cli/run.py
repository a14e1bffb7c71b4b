"""modelctl run: one question, or a chat."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelctl import config
from modelctl.cli import background, term
from modelctl.cli.adapters import rule, typed_mix, typed_model
from modelctl.cli.options import choose_model
from modelctl.cli.parameters import checked, with_parameters
from modelctl.errors import BadRequest, UsageError

if TYPE_CHECKING:
    from modelctl.cli.talk import Talk

MAX_STDIN = 16 << 20  # bytes; far more than any context holds


@with_parameters
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="tutor, or with a mix: tutor+pirate=0.7")] = "",
    prompt: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="without one: a chat")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="ADAPTER=SCALE", help="the mix for this run; `none`: the bare base. Repeatable"),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="the system message, instead of the model's")] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="json|SCHEMA", help="answer in JSON, or after a JSON schema")
    ] = None,
    keepalive: Annotated[
        str | None, typer.Option("--keepalive", "--keep-alive", metavar="DURATION", help="stay loaded: 5m, 0, -1")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="print the timing after the answer")] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="print the exact prompt; generate nothing")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the whole reply as JSON")] = False,
    **given: Any,
) -> None:
    """Ask a model. Without a prompt, chat with it. Piped text is put before the prompt."""
    from modelctl.cli.talk import Talk

    name, words = _model_or_prompt(model, prompt)
    name, mix = _mix(name, lora)
    options, schema = checked(given), _format(format)
    if keepalive is not None:
        _check_duration(keepalive)
    question = _question(words)
    settings = config.load()
    client = background.reach(settings)
    name = name or choose_model(settings, client)
    talk = Talk(client, name, mix, system, options, schema, keepalive, verbose)
    if question is not None:
        _once(talk, question, show_prompt, as_json)
    elif as_json or show_prompt:
        raise UsageError("this needs a prompt", hint='for example: modelctl run --json "How are you?"')
    else:
        from modelctl.cli.chat import Chat

        Chat(talk, settings).loop()
    settings.remember_model(name)


def _model_or_prompt(model: str, prompt: list[str] | None) -> tuple[str, list[str] | None]:
    """A first word with blanks in it cannot be a model: `modelctl run "How are you?"`."""
    if prompt or not re.search(r"\s", model):
        return model, prompt
    return "", [model]


def _mix(name: str, terms: list[str] | None) -> tuple[str, dict[str, float] | None]:
    bare, mix = typed_model(name)
    if not terms:
        return bare, mix
    if mix is not None:
        raise UsageError("the mix is given twice, with the model's name and with --lora", hint="give it once")
    return bare, typed_mix(terms, default=1.0)


def _format(text: str | None) -> Any:
    if text is None or text == "json":
        return text
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise UsageError("--format takes json or a JSON schema", hint='for example: --format \'{"type": "object"}\'')
    return schema


def _check_duration(text: str) -> None:
    try:
        config.parse_duration(text)
    except BadRequest as error:
        raise UsageError(f"--keepalive: {error.message}", hint=error.hint) from None


def _question(words: list[str] | None) -> str | None:
    """None: a chat is wanted. An empty question only loads the model."""
    piped = _piped()
    if words is None and piped is None:
        return None
    parts = [piped or "", " ".join(words or [])]
    question = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not question and words is None:
        raise UsageError("no prompt, and nothing came from stdin", hint='for example: modelctl run "How are you?"')
    return question.encode(errors="replace").decode()


def _piped() -> str | None:
    """What came through a pipe or from a file. Other kinds of stdin (a terminal, /dev/null) are not read."""
    try:
        if sys.stdin.isatty():
            return None
        if not _has_bytes(os.fstat(sys.stdin.fileno()).st_mode):
            return ""
    except (AttributeError, OSError, ValueError):  # no stdin at all
        return ""
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise UsageError(f"more than {term.size(MAX_STDIN)} came from stdin")
    return data.decode(errors="replace")


def _has_bytes(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _once(talk: Talk, question: str, show_prompt: bool, as_json: bool) -> None:
    if not question:
        talk.client.chat_once(talk.request(stream=False))
        term.note(f"{talk.model} is loaded")
    elif show_prompt or as_json:
        _whole(talk, question, show_prompt)
    else:
        _say_rule(talk)
        talk.ask(question)


def _whole(talk: Talk, question: str, show_prompt: bool) -> None:
    import msgspec

    from modelctl.api import native

    talk.messages = [native.Message(role="user", content=question)]
    request = talk.request(stream=False)
    request.debug_render_only = show_prompt or None
    reply = talk.client.chat_once(request)
    if show_prompt and reply.debug_info:
        term.say(reply.debug_info.rendered_template)
    else:
        term.print_json(msgspec.to_builtins(reply))


def _say_rule(talk: Talk) -> None:
    """Somebody at a terminal may wonder why the adapters do nothing."""
    if talk.lora is not None or not sys.stderr.isatty():
        return
    scales = {adapter.name: adapter.scale for adapter in talk.client.lora(talk.model).adapters}
    if scales and not any(scales.values()):
        term.note(rule(talk.model, scales), faint=True)
