"""The chat of `modelctl run`: questions with history, and /commands."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelctl.api import native
from modelctl.cli import background, term
from modelctl.cli.adapters import rule, short, spelled, typed_mix
from modelctl.cli.lines import Lines
from modelctl.cli.parameters import check
from modelctl.cli.talk import Talk
from modelctl.errors import BadRequest, ModelctlError, UsageError
from modelctl.mix import NONE
from modelctl.parser import PARAMETERS

if TYPE_CHECKING:
    from modelctl.config import Config

HELP = """\
/lora                    the adapters and the scales of this chat
/lora pirate=0.7 json=0  change scales for this chat; others keep theirs
/lora none               the bare base
/lora reset              follow the model's mix again (modelctl lora set)
/set parameter NAME X    temperature, top_k, seed, ... (modelctl help parameters)
/set system TEXT         another system message
/set format json|none    answer in JSON
/set verbose|quiet       print the timing, or not
/show [PART]             info, adapters, modelfile, parameters, system, template, license
/clear                   forget what was said
/bye                     leave; Ctrl-D too

\"\"\" opens and closes a text of several lines. Ctrl-C stops an answer."""
SHOWN = ("info", "adapters", "modelfile", "parameters", "system", "template", "license")
SETTABLE = ("parameter", "system", "format", "verbose", "quiet")


class Chat:
    def __init__(self, talk: Talk, settings: Config) -> None:
        self.talk = talk
        self.settings = settings
        self.adapters = talk.client.lora(talk.model).adapters
        self.commands: dict[str, Callable[[str], None]] = {
            "/lora": self.lora,
            "/set": self.set,
            "/show": self.show,
            "/clear": self.clear,
            "/help": self.help,
            "/?": self.help,
            "/bye": self.bye,
            "/exit": self.bye,
            "/quit": self.bye,
        }

    def loop(self) -> None:
        """Until /bye or the end of stdin."""
        self._greet()
        lines = Lines(self.settings.history_path, self.completions)
        with lines, contextlib.suppress(EOFError):
            while True:
                self._turn(lines.read())

    def _greet(self) -> None:
        scales = (
            {adapter.name: adapter.scale for adapter in self.adapters} if self.talk.lora is None else self.talk.lora
        )
        term.note(f"{short(self.talk.model)}: ask away; /help lists the commands, Ctrl-D leaves", faint=True)
        if scales:
            term.note(rule(self.talk.model, scales, "/lora"), faint=True)

    def _turn(self, text: str) -> None:
        try:
            if text.startswith("/"):
                self._command(text)
            elif text.strip():
                self.talk.client = background.reach(self.settings)  # it may have been stopped meanwhile
                self.talk.ask(text)
        except KeyboardInterrupt:
            term.note("(stopped)", faint=True)
        except ModelctlError as error:
            term.error(error.message, error.hint)

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name not in self.commands:
            raise UsageError(f"unknown command {name}", hint="/help lists the commands")
        self.commands[name](rest.strip())

    # commands

    def lora(self, rest: str) -> None:
        """The mix of this chat."""
        current = self.talk.client.lora(self.talk.model)
        self.adapters = current.adapters
        if rest == "reset":
            self.talk.lora = None
        elif rest == NONE:
            self.talk.lora = {}
        elif rest:
            change = {self._adapter(key): scale for key, scale in typed_mix(rest.split(), default=1.0).items()}
            self.talk.lora = self.scales() | change
        self._print_mix()

    def scales(self) -> dict[str, float]:
        """Of every adapter, as the next question will be answered."""
        if self.talk.lora is None:
            return {adapter.name: adapter.scale for adapter in self.adapters}
        return {adapter.name: self.talk.lora.get(adapter.name, 0.0) for adapter in self.adapters}

    def _adapter(self, key: str) -> str:
        for adapter in self.adapters:
            if key in (adapter.name, str(adapter.id)):
                return adapter.name
        names = ", ".join(f"{adapter.name} ({adapter.id})" for adapter in self.adapters)
        raise BadRequest(f"{self.talk.model} has no adapter {key!r}", hint=f"it has: {names}" if names else None)

    def _print_mix(self) -> None:
        if not self.adapters:
            term.say(f"{self.talk.model} has no adapters")
        else:
            whose = "the model's mix" if self.talk.lora is None else "this chat's mix"
            term.say(f"{whose}: {spelled(self.scales())}")

    def set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        if what == "parameter":
            self._set_parameter(value)
        elif what == "system":
            self.talk.system = value.strip("\"'")
        elif what == "format":
            self.talk.format = "json" if value == "json" else None
        elif what in ("verbose", "quiet"):
            self.talk.verbose = what == "verbose"
        else:
            raise UsageError(f"/set takes {', '.join(SETTABLE)}", hint="for example: /set parameter temperature 0.2")
        term.say("ok")

    def _set_parameter(self, text: str) -> None:
        try:
            name, *values = shlex.split(text)
        except ValueError:  # nothing there, or a quote that is not closed
            raise UsageError("expected a name and a value", hint="for example: /set parameter top_k 20") from None
        if not values:
            raise UsageError(f"{name} needs a value", hint="`modelctl help parameters` lists the ranges")
        self.talk.options[name] = check(name, values if name == "stop" else values[0])

    def show(self, rest: str) -> None:
        part = rest or "info"
        if part not in SHOWN:
            raise UsageError(f"/show takes {', '.join(SHOWN)}")
        if part == "adapters":
            self._print_mix()
            return
        reply = self.talk.client.show(self.talk.model)
        text = _info(self.talk.model, reply) if part == "info" else getattr(reply, part)
        term.say(text.rstrip() or f"{self.talk.model} has no {part}")

    def clear(self, rest: str) -> None:
        self.talk.messages.clear()
        term.say("forgotten")

    def help(self, rest: str) -> None:
        term.say(HELP)

    def bye(self, rest: str) -> None:
        raise EOFError

    def completions(self, line: str) -> list[str]:
        """What may follow the words before the last blank of `line`."""
        before = line[: line.rfind(" ") + 1]
        if not before:
            return [name + " " for name in self.commands] if line.startswith("/") else []
        if before.startswith("/lora "):
            return [f"{adapter.name}=" for adapter in self.adapters] + [NONE, "reset"]
        if before.startswith("/set parameter "):
            return [f"{name} " for name, spec in PARAMETERS.items() if not spec.deprecated]
        return list({"/set ": SETTABLE, "/show ": SHOWN}.get(before, ()))


def _info(model: str, reply: native.ShowReply) -> str:
    details = reply.details
    size = " ".join(filter(None, (details.family, details.parameter_size, details.quantization_level)))
    return f"{model}: {size}\nadapters: {', '.join(adapter.name for adapter in reply.adapters) or 'none'}"
