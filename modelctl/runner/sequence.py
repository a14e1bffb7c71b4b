"""One generation in flight: its tokens, its mix, and how far it has come."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from modelctl.runner.frames import Delta, Done, Logprob, Sampling
from modelctl.runner.llama import Sampler
from modelctl.runner.text import TextStream

Scales = tuple[tuple[str, float], ...]  # a Mix's scales: (adapter digest, float32), sorted, no zeros
NO_SLOT = -1


@dataclass(eq=False, slots=True)
class Sequence:
    """`tokens` holds the prompt, then what was generated; the first `n_done` of them are in llama.cpp's memory."""

    id: int
    scales: Scales
    tokens: list[int]
    n_ctx: int
    n_predict: int  # at most this many new tokens
    sampling: Sampling
    sampler: Sampler | None  # None: greedy
    text: TextStream
    shift: bool
    arrived: int  # ns
    n_keep: int = 0
    slot: int = NO_SLOT  # llama.cpp's sequence id, while admitted
    n_done: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    n_endless: int = 0  # tokens before which it may not end by itself
    started: int = 0  # ns, when first planned
    first: int = 0  # ns, when the prompt was through
    cancelled: bool = False
    logprobs: list[Logprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)
        self.n_endless = sys.maxsize if self.sampling.ignore_eos else self.sampling.min_tokens

    @property
    def n_pending(self) -> int:
        """Rows to decode before the next token can be sampled: 1 while generating, more during the prompt."""
        return len(self.tokens) - self.n_done

    @property
    def generating(self) -> bool:
        return self.n_generated > 0 and self.n_pending == 1

    def end(self, reason: str, text: str, now: int) -> Delta:
        """The last delta of this sequence."""
        done = Done(
            reason=reason,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            queue_ns=max(0, (self.started or now) - self.arrived),
            prompt_ns=max(0, (self.first or now) - (self.started or now)),
            eval_tokens=self.n_generated,
            eval_ns=max(0, now - self.first) if self.first else 0,
            stop=self.text.stopped_by,
        )
        return Delta(id=self.id, text=text, logprobs=self.logprobs, done=done)
