from __future__ import annotations

from collections.abc import Callable

import pytest

from modelctl.runner.frames import Sampling
from modelctl.runner.sequence import Sequence
from modelctl.runner.text import TextStream

MakeSequence = Callable[..., Sequence]


@pytest.fixture
def make() -> MakeSequence:
    """Sequences for tests that need no model: `make([1, 2, 3], mix="a", done=0, generated=0)`."""
    count = 0

    def build(tokens: list[int], mix: str = "", done: int = 0, generated: int = 0) -> Sequence:
        nonlocal count
        count += 1
        sequence = Sequence(
            id=count,
            scales=((mix, 1.0),) if mix else (),
            tokens=list(tokens),
            n_ctx=1000,
            n_predict=100,
            sampling=Sampling(),
            sampler=None,
            text=TextStream(),
            shift=True,
            arrived=count,
        )
        sequence.n_done, sequence.n_generated = done, generated
        return sequence

    return build
