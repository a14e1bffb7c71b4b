"""One conversation with a model: what `run` asks once and `chat` asks again and again."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from modelctl.api import native
from modelctl.cli import term
from modelctl.cli.adapters import spelled
from modelctl.client import Client


@dataclass
class Talk:
    """`lora` None: the model's current mix, whatever it is when a question is asked."""

    client: Client
    model: str
    lora: dict[str, float] | None = None
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    format: Any = None
    keep_alive: str | None = None
    verbose: bool = False
    messages: list[native.Message] = field(default_factory=list)

    def request(self, stream: bool = True) -> native.ChatRequest:
        system = [native.Message(role="system", content=self.system)] if self.system is not None else []
        return native.ChatRequest(
            model=self.model,
            messages=[*system, *self.messages] if self.messages else [],
            stream=stream,
            format=self.format,
            options=self.options or None,
            keep_alive=self.keep_alive,
            lora=self.lora,
        )

    def ask(self, question: str) -> None:
        """Streams the answer to stdout and keeps both. What was said before Ctrl-C is kept as well."""
        self.messages.append(native.Message(role="user", content=question))
        answer = ""
        try:
            for piece in self._stream():
                answer += piece
        except BaseException:
            if answer:
                print()
            raise
        finally:
            if answer:
                self.messages.append(native.Message(role="assistant", content=answer))
            else:
                self.messages.pop()
        if not answer.endswith("\n"):
            print()

    def _stream(self) -> Iterator[str]:
        with contextlib.closing(_first_awaited(self.client.chat(self.request()), self.model)) as replies:
            for reply in replies:
                if reply.message.thinking and term.colours(sys.stdout):
                    term.write_faint(reply.message.thinking)
                text = (reply.message.content or "") + _calls(reply.message)
                term.write(text)
                yield text
                if reply.done and self.verbose:
                    print()
                    timing(reply)


def _first_awaited(replies: Iterator[native.ChatReply], model: str) -> Generator[native.ChatReply]:
    """The same, with a sign of life while the model loads and reads the prompt."""
    with term.waiting(f"waiting for {model}"):
        first = next(replies, None)
    if first is not None:
        yield first
    yield from replies


def _calls(message: native.Message) -> str:
    return "".join(json.dumps(call) + "\n" for call in message.tool_calls or [])


def timing(reply: native.Answer) -> None:
    """To stderr: where the time went."""
    cached = f" ({reply.prompt_cached_count} from the cache)" if reply.prompt_cached_count else ""
    facts = {
        "mix": spelled({name: scale for name, scale in (reply.lora or {}).items() if scale}) or "base",
        "total duration": _seconds(reply.total_duration),
        "load duration": _seconds(reply.load_duration),
        "queue duration": _seconds(reply.queue_duration),
        "prompt eval count": f"{reply.prompt_eval_count} tokens{cached}",
        "prompt eval duration": _seconds(reply.prompt_eval_duration),
        "prompt eval rate": _rate(reply.prompt_eval_count - reply.prompt_cached_count, reply.prompt_eval_duration),
        "eval count": f"{reply.eval_count} tokens",
        "eval duration": _seconds(reply.eval_duration),
        "eval rate": _rate(reply.eval_count, reply.eval_duration),
    }
    for name, value in facts.items():
        term.note(f"{name + ':':<22}{value}")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.3f} s" if nanoseconds >= 1e8 else f"{nanoseconds / 1e6:.1f} ms"


def _rate(n_tokens: int, nanoseconds: int) -> str:
    return f"{n_tokens / nanoseconds * 1e9:.1f} tokens/s" if nanoseconds and n_tokens > 0 else "-"
