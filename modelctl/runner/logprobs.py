"""Log-probabilities of a token and of the most likely ones, from raw logits (before any sampler)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modelctl.runner.frames import Logprob
from modelctl.runner.llama import Base


def of(base: Base, logits: npt.NDArray[np.float32], token: int, n_top: int) -> Logprob:
    """`logits`: [n_vocab]. The token's own entry, with the `n_top` most likely in `top`, most likely first."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    top = np.argpartition(-values, n_top)[:n_top] if n_top else np.empty(0, np.int64)
    top = top[np.lexsort((top, -values[top]))]
    entry = _entry(base, token, float(values[token]))
    entry.top = [_entry(base, int(t), float(values[t])) for t in top]
    return entry


def _entry(base: Base, token: int, logprob: float) -> Logprob:
    piece = base.piece(token, special=True)
    return Logprob(piece.decode(errors="replace"), logprob, list(piece))
