"""Which rows of a joined tensor a batch computes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelctl.runner.joined import PAD, Layout
from modelctl.runner.sequence import Scales

Span = tuple[int, int]  # from the first row to behind the last
MAX_BLOCKS = 16
MIN_BLOCK = 8  # tokens; a smaller product may take another way through llama.cpp, and round otherwise


@dataclass(frozen=True)
class Window:
    """The tokens of a batch are `n_blocks` blocks of as many each; those of block i need the rows from
    start + i * step on, `width` of them, perhaps none. One product computes that: steps are what its operands' strides
    can say."""

    start: int
    width: int
    n_blocks: int = 1
    step: int = 0

    @property
    def starts(self) -> list[int]:
        return [self.start + i * self.step for i in range(self.n_blocks)]


def window_of(layout: Layout, rows: Sequence[Scales], *, can_block: bool) -> Window:
    """The narrowest that holds, for each token, the rows of the adapters in its mix: `rows[i]` is token i's.
    `can_block`: whether the products can be batches of products."""
    spans = spans_of(layout, rows)
    whole = _around(spans)
    if whole is None:
        return Window(0, 0)
    windows = [Window(whole[0], whole[1] - whole[0])]
    for n_blocks in range(2, min(MAX_BLOCKS, len(rows) // MIN_BLOCK) + 1) if can_block else ():
        if len(rows) % n_blocks == 0:
            size = len(rows) // n_blocks
            blocks = [_around(spans[i : i + size]) for i in range(0, len(rows), size)]
            windows += _fits(blocks, layout.rank)
    return min(windows, key=lambda window: window.width)


def spans_of(layout: Layout, rows: Iterable[Scales]) -> list[Span | None]:
    """Of each token the rows of its adapters and what lies between them; None where it has none of these."""
    parts = {part.digest: (part.start, part.stop) for part in layout.parts}
    known: dict[Scales, Span | None] = {}
    for scales in rows:
        if scales not in known:
            known[scales] = _around([parts.get(digest) for digest, _ in scales])
    return [known[scales] for scales in rows]


def _around(spans: Iterable[Span | None]) -> Span | None:
    some = [span for span in spans if span]
    return (min(a for a, _ in some), max(b for _, b in some)) if some else None


def _fits(blocks: Sequence[Span | None], rank: int) -> list[Window]:
    """For each step that keeps all blocks inside the tensor, the narrowest window."""
    some = [(i, *span) for i, span in enumerate(blocks) if span]
    last = len(blocks) - 1
    limit = rank // last // PAD * PAD
    windows: list[Window] = []
    for step in range(-limit, limit + 1, PAD):
        start = min(a - i * step for i, a, _ in some)
        stop = max(b - i * step for i, _, b in some)
        if min(start, start + last * step) >= 0 and max(stop, stop + last * step) <= rank:
            windows.append(Window(start, stop - start, len(blocks), step))
    return windows
