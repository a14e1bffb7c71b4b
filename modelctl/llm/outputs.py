"""What a call returns, and what it is put together from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelctl.runner.frames import Delta, Done, Failed, Logprob
from modelctl.runner.sequence import Sequence

__all__ = ["Answer", "CompletionOutput", "Logprob", "Request", "RequestOutput"]


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. `finish_reason`: "stop", "length", or "error", and then `error` says what went wrong."""

    index: int
    text: str
    token_ids: tuple[int, ...]  # those of a stop string too, but not the end token
    finish_reason: str
    stop_reason: str | None = None  # the stop string that ended it
    logprobs: tuple[Logprob, ...] | None = None  # one a token, where asked for
    error: str | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt as the model read it, and its n answers. `mix`: the scales that were not 0, by adapter name."""

    prompt: str
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    mix: Mapping[str, float]


@dataclass
class Answer:
    """A CompletionOutput to be."""

    sequence: Sequence
    text: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    done: Done | None = None
    failed: Failed | None = None

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.logprobs += delta.logprobs
        self.done = delta.done

    def output(self, index: int) -> CompletionOutput:
        return CompletionOutput(
            index=index,
            text="".join(self.text),
            token_ids=tuple(self.sequence.tokens[self.sequence.n_prompt :]),
            finish_reason=self.done.reason if self.done else "error",
            stop_reason=(self.done and self.done.stop) or None,
            logprobs=tuple(self.logprobs) if self.sequence.sampling.logprobs >= 0 else None,
            error=self.failed.message if self.failed else None,
        )


@dataclass
class Request:
    """A RequestOutput to be. `mix`: every adapter's scale."""

    prompt: str
    mix: Mapping[str, float]
    answers: list[Answer]

    def output(self) -> RequestOutput:
        sequence = self.answers[0].sequence
        outputs = tuple(answer.output(i) for i, answer in enumerate(self.answers))
        on = {name: scale for name, scale in self.mix.items() if scale}
        return RequestOutput(self.prompt, tuple(sequence.tokens[: sequence.n_prompt]), outputs, on)
