"""The prefix cache: which llama.cpp sequence ids hold which tokens, under which mix.

Memory computed under one mix is never used under another: the mix is half of every key. Where sequences share cells, a
common prefix costs nothing. Where each has its own, a prefix is copied when that is cheaper than computing it again,
and so is what lies in the way of keeping those that run side by side: llama.cpp computes neighbours in one go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from modelctl.runner.sequence import NO_SLOT, Scales, Sequence


class Memory(Protocol):
    """What the cache needs of a Context."""

    def cut(self, seq: int, start: int) -> bool: ...
    def share(self, source: int, target: int, end: int) -> None: ...


N_COPY = 32  # tokens of a common prefix that are worth copying a sequence's cells for
MUCH_OLDER = 10_000_000_000  # ns by which another idle sequence must be older, to be given up for a copy of this one


@dataclass(eq=False)
class Idle:
    """The memory a finished sequence left behind."""

    slot: int
    scales: Scales
    tokens: list[int]
    used: int  # ns


class PrefixCache:
    """Owns the sequence ids of one context. `admit` gives a Sequence one, with as much memory in it as is known."""

    def __init__(
        self, memory: Memory, n_slots: int, *, can_cut: bool = True, can_share: bool = True, own_cells: bool = False
    ) -> None:
        """`can_cut`: a sequence's tail can be forgotten. `can_share`: one can begin with what another holds.
        `own_cells`: by a copy of all its cells."""
        self._memory = memory
        self._can_cut = can_cut
        self._can_share = can_share and can_cut
        self._own_cells = own_cells
        self._n_share = N_COPY if own_cells else 1
        self._free = list(range(n_slots))
        self._idle: list[Idle] = []
        self.n_hits = 0
        self.n_saved = 0  # tokens not computed again

    def admit(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """Give `sequence` a slot; its n_done tokens are in memory. At least one token is left to decode."""
        limit = len(sequence.tokens) - 1
        running = list(running)
        idle, n_idle = self._best_idle(sequence, limit)
        if idle is not None and n_idle < min(self._n_share, len(idle.tokens)) and self._has_other_slot():
            idle, n_idle = None, 0  # too little to copy, and the rest is worth keeping
        source, n_running = _best_running(sequence, running, limit) if self._can_share else (NO_SLOT, 0)
        if n_running < self._n_share:
            source, n_running = NO_SLOT, 0
        taken = {s.slot for s in running}
        if idle is not None and n_idle >= n_running and (n_idle == len(idle.tokens) or not self._can_fork()):
            self._idle.remove(idle)  # this sequence goes on where that one ended
            sequence.slot = self._moved(idle, taken)
            if n_idle < len(idle.tokens):
                self._memory.cut(sequence.slot, n_idle)
        else:
            if idle is not None and n_idle > n_running:
                source, n_running = idle.slot, n_idle
                idle.used = sequence.arrived
            sequence.slot = self._take_slot(keep=source, near=taken)
            if n_running:
                self._memory.share(source, sequence.slot, n_running)
            n_idle = n_running
        sequence.n_done = sequence.n_cached = n_idle
        self.n_hits += n_idle > 0
        self.n_saved += n_idle

    def retire(self, sequence: Sequence, now: int) -> None:
        """The sequence ended: keep what it computed for the next one with this prefix and mix."""
        tokens = sequence.tokens[: sequence.n_done]
        self._drop_covered(sequence.scales, tokens)
        if tokens:
            self._idle.append(Idle(sequence.slot, sequence.scales, tokens, now))
        else:
            self._free.append(sequence.slot)
        sequence.slot = NO_SLOT

    def drop(self, sequence: Sequence) -> None:
        """Forget the sequence's memory, all of it."""
        self._release(sequence.slot)
        sequence.slot, sequence.n_done = NO_SLOT, 0

    def borrow(self) -> int:
        """An empty slot for a moment; `give_back` returns it."""
        return self._take_slot()

    def give_back(self, slot: int) -> None:
        self._release(slot)

    def evict(self) -> bool:
        """Free the memory that was unused longest; False when nothing is idle."""
        if not self._idle:
            return False
        oldest = min(self._idle, key=lambda entry: entry.used)
        self._idle.remove(oldest)
        self._release(oldest.slot)
        return True

    def clear(self) -> None:
        while self.evict():
            pass

    @property
    def n_idle(self) -> int:
        return len(self._idle)

    def idle_lengths(self) -> dict[int, int]:
        """How many tokens each idle slot holds."""
        return {entry.slot: len(entry.tokens) for entry in self._idle}

    def _best_idle(self, sequence: Sequence, limit: int) -> tuple[Idle | None, int]:
        best, n_best = None, 0
        for entry in self._idle:
            if entry.scales == sequence.scales:
                n = min(common_prefix(entry.tokens, sequence.tokens), limit)
                if n > n_best and (self._can_cut or n == len(entry.tokens)):
                    best, n_best = entry, n
        return best, n_best

    def _can_fork(self) -> bool:
        """Whether an idle sequence can stay and lend its beginning to a slot of its own."""
        return self._can_share and self._has_other_slot()

    def _has_other_slot(self) -> bool:
        """Whether there is one to take beside that of an idle sequence."""
        return bool(self._free) or len(self._idle) > 1

    def _take_slot(self, keep: int = NO_SLOT, near: Collection[int] = ()) -> int:
        """An empty slot, at the cost of what was unused longest; beside those in `near` if that matters."""
        slot = self._beside(near, keep)
        if slot == NO_SLOT or slot in self._free:
            return self._take_free(keep, slot)
        entry = next(e for e in self._idle if e.slot == slot)
        self._idle.remove(entry)
        others = (e.used for e in self._idle if e.slot != keep)
        if self._free or min(others, default=entry.used) < entry.used - MUCH_OLDER:
            entry.slot = self._copied(slot, self._take_free(keep), len(entry.tokens))
            self._idle.append(entry)
        self._memory.cut(slot, 0)
        return slot

    def _take_free(self, keep: int, slot: int = NO_SLOT) -> int:
        if not self._free:
            victim = min((e for e in self._idle if e.slot != keep), key=lambda entry: entry.used)
            self._idle.remove(victim)
            self._release(victim.slot)
        slot = min(self._free) if slot == NO_SLOT else slot
        self._free.remove(slot)
        return slot

    def _beside(self, near: Collection[int], keep: int) -> int:
        """Of the slots that nobody runs in, the one with the most neighbours in `near`."""
        if not (self._own_cells and near):
            return NO_SLOT
        open_slots = sorted({*self._free, *(entry.slot for entry in self._idle)} - {keep})
        neighbours = {slot: (slot - 1 in near) + (slot + 1 in near) for slot in open_slots}
        best = max(open_slots, key=lambda slot: (neighbours[slot], slot in self._free), default=NO_SLOT)
        return best if neighbours.get(best) else NO_SLOT

    def _moved(self, idle: Idle, near: Collection[int]) -> int:
        """The slot of what was just taken from the idle ones, after moving it beside those in `near`."""
        slot = idle.slot
        if not (self._own_cells and near) or slot - 1 in near or slot + 1 in near:
            return slot
        if not self._free and not self._idle:
            return slot
        target = self._copied(slot, self._take_slot(keep=slot, near=near), len(idle.tokens))
        self._release(slot)
        return target

    def _copied(self, source: int, target: int, n: int) -> int:
        self._memory.share(source, target, n)
        return target

    def _release(self, slot: int) -> None:
        self._memory.cut(slot, 0)
        self._free.append(slot)

    def _drop_covered(self, scales: Scales, tokens: list[int]) -> None:
        """An idle prefix of what is now kept in full serves nobody any more."""
        for entry in [e for e in self._idle if e.scales == scales and len(e.tokens) <= len(tokens)]:
            if tokens[: len(entry.tokens)] == entry.tokens:
                self._idle.remove(entry)
                self._release(entry.slot)


def _best_running(sequence: Sequence, running: Iterable[Sequence], limit: int) -> tuple[int, int]:
    best, n_best = NO_SLOT, 0
    for other in running:
        if other.scales == sequence.scales and other.slot != NO_SLOT:
            n = min(common_prefix(other.tokens, sequence.tokens), other.n_done, limit)
            if n > n_best:
                best, n_best = other.slot, n
    return best, n_best


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many first tokens agree. Slices compare at C speed, so bisecting beats a loop."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return bisect_left(range(n), True, key=lambda i: a[: i + 1] != b[: i + 1])
