"""Which rows of a joined tensor a batch computes."""

from __future__ import annotations

import random

import pytest

from modelctl.runner.joined import Layout, Part
from modelctl.runner.sequence import Scales
from modelctl.runner.window import MIN_BLOCK, Window, spans_of, window_of

ADAPTERS = "abcdefgh"
LAYOUT = Layout(tuple(Part(name, 16 * i, 16 * i + 16, 32.0) for i, name in enumerate(ADAPTERS)))


def mix(names: str) -> Scales:
    return tuple((name, 1.0) for name in names)


def rows_of(*names: str, size: int = 1) -> list[Scales]:
    return [mix(n) for n in names for _ in range(size)]


def window(*names: str, size: int = 1) -> Window:
    return window_of(LAYOUT, rows_of(*names, size=size), can_block=True)


def test_it_reaches_from_the_first_adapter_in_use_to_the_last() -> None:
    layout = Layout((Part("a", 0, 16, 32.0), Part("b", 16, 48, 32.0), Part("c", 48, 64, 32.0)))

    def reach(*names: str) -> tuple[int, int]:
        made = window_of(layout, rows_of(*names), can_block=True)
        return made.start, made.start + made.width

    assert reach("a", "", "bc", "x") == (0, 64)
    assert reach("b") == (16, 48)
    assert reach("cb") == (16, 64)
    assert reach("a", "c") == (0, 64)
    assert reach("x", "") == (0, 0), "there is nothing to compute"


def test_each_prompt_gets_its_own() -> None:
    assert window("a", "b", "c", "d", size=16) == Window(0, 16, 4, 16)
    assert window("d", "c", "b", "a", size=20) == Window(48, 16, 4, -16)
    assert window("h", "a", size=16) == Window(112, 16, 2, -112)
    assert window("c", "c", size=16) == Window(32, 16), "one block is enough"
    assert window("b", "", "d", "e", size=16) == Window(16, 16, 4, 16), "the base alone needs none"


def test_steps_are_alike_so_some_rows_are_computed_in_vain() -> None:
    assert window("a", "c", "d", size=16) == Window(0, 32, 3, 16)


def test_few_tokens_are_one_block() -> None:
    assert window("a", "h", size=MIN_BLOCK - 1) == Window(0, 128)
    assert window_of(LAYOUT, rows_of("a", "h", size=16), can_block=False) == Window(0, 128)


@pytest.mark.parametrize("seed", range(30))
def test_it_holds_what_each_token_needs_and_stays_inside(seed: int) -> None:
    rng = random.Random(seed)
    names = ["".join(rng.sample(ADAPTERS, rng.randrange(3))) for _ in range(rng.randrange(1, 9))]
    rows = rows_of(*names, size=rng.randrange(1, 40))
    made = window_of(LAYOUT, rows, can_block=True)
    assert min(made.starts) >= 0
    assert max(made.starts) + made.width <= LAYOUT.rank
    assert len(rows) % made.n_blocks == 0
    for i, span in enumerate(spans_of(LAYOUT, rows)):
        start = made.starts[i * made.n_blocks // len(rows)]
        assert span is None or (start <= span[0] and span[1] <= start + made.width)
