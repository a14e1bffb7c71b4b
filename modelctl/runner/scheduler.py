"""Which tokens go into the next batch. Pure: no llama.cpp, no I/O, the clock comes in as arguments.

llama.cpp decodes a whole batch under one set of adapters, and changing the set costs a rebuild of its graphs. So mixes
take turns: each may use the context for a quantum of time, then the next one that has work. A mix that overran its
quantum has that much less next time (deficit round-robin), so every mix gets the same share whatever its prompts.
Mixes that can run in one batch (see mixed.py) have one turn together, which is as long as theirs would be one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from functools import cached_property

from modelctl.runner.sequence import Scales, Sequence

MIN_QUANTUM = 0.1  # seconds
PATIENCE = 10_000_000_000  # nanoseconds
WHOLE = 1.5  # chunks that all prompts together may have to be taken at once: a rest costs a batch of its own
SHORT = 32  # rows that a prompt gets at least, when it gets any
RESERVES_PER_QUANTUM = 10  # at most a tenth of the time goes into changing adapters


@dataclass(frozen=True)
class Plan:
    """The next `n` pending tokens of each sequence, all under `scales`; None: each under its own, in one batch."""

    scales: Scales | None
    rows: tuple[tuple[Sequence, int], ...]

    @cached_property
    def n_rows(self) -> int:
        return sum(n for _, n in self.rows)

    @cached_property
    def generates(self) -> bool:
        """Whether it is one row for each sequence, as it is when all generate."""
        return all(n == 1 for _, n in self.rows)

    @cached_property
    def mixes(self) -> tuple[Scales, ...]:
        """Of each row."""
        return tuple(sequence.scales for sequence, n in self.rows for _ in range(n))

    @cached_property
    def is_masked(self) -> bool:
        """Whether it takes the time of a masked batch. Where all are of the base alone, there is nothing to mask."""
        return self.scales is None and any(self.mixes)


@dataclass
class Scheduler:
    """`n_batch`: rows a batch may have. `n_chunk`: rows of prompts while others generate, so that they never wait much
    longer than for one such chunk."""

    n_batch: int = 512
    n_chunk: int = 128
    reserve_cost: float = 0.010  # seconds; measured by the engine
    _turns: deque[Scales | None] = field(default_factory=deque)
    _credit: dict[Scales | None, float] = field(default_factory=dict)

    @property
    def quantum(self) -> float:
        return max(MIN_QUANTUM, RESERVES_PER_QUANTUM * self.reserve_cost)

    def admit(self, waiting: Many[Sequence], running: Many[Sequence], now: int) -> Sequence | None:
        """The one to admit next: of the mix with the fewest running, the first to arrive, so that no crowd on one mix
        keeps another out; but whoever has waited for `PATIENCE` comes first. `now` and arrivals are nanoseconds."""
        if not waiting:
            return None
        eldest = min(waiting, key=lambda s: s.arrived)
        if now - eldest.arrived > PATIENCE:
            return eldest
        counts: dict[Scales, int] = {}
        for sequence in running:
            counts[sequence.scales] = counts.get(sequence.scales, 0) + 1
        return min(waiting, key=lambda s: (counts.get(s.scales, 0), s.arrived))

    def plan(self, running: Many[Sequence], together: Container[Scales] = ()) -> Plan | None:
        """The next batch; None when nothing runs. The mixes in `together` share their batches."""
        by_turn: dict[Scales | None, list[Sequence]] = {}
        for sequence in running:
            by_turn.setdefault(None if sequence.scales in together else sequence.scales, []).append(sequence)
        if not by_turn:
            self._turns.clear()
            self._credit.clear()
            return None
        turn = self._turn(by_turn)
        return Plan(turn, tuple(self.rows(by_turn[turn])))

    def charge(self, plan: Plan, seconds: float) -> None:
        """Book what the plan's batch took."""
        self._credit[plan.scales] = self._credit.get(plan.scales, 0.0) - seconds

    def rows(self, sequences: Many[Sequence]) -> list[tuple[Sequence, int]]:
        """One row for each that generates; what is left is split evenly among the prompts, shortest need first. Short
        ones are taken whole, even a little beyond `n_chunk`; but an even share is kept for the eldest."""
        generating = [s for s in sequences if s.generating][: self.n_batch]
        prompts = sorted((s for s in sequences if not s.generating), key=lambda s: (s.n_pending, s.arrived))
        chosen = [(s, 1) for s in generating]
        room = self.n_batch - len(generating)
        in_one = sum(s.n_pending for s in prompts) <= WHOLE * self.n_chunk
        budget = room if in_one or not generating else min(room, self.n_chunk)
        eldest = min(prompts, key=lambda s: s.arrived, default=None)
        kept = budget // max(1, len(prompts))
        budget -= kept
        for i, sequence in enumerate(prompts):
            if sequence is eldest:
                budget = max(0, budget) + kept
            if budget > 0 and room > 0:
                n = min(sequence.n_pending, max(SHORT, budget // (len(prompts) - i)), room)
                chosen.append((sequence, n))
                budget, room = budget - n, room - n
        return chosen

    def _turn(self, by_turn: dict[Scales | None, list[Sequence]]) -> Scales | None:
        """Whose turn it is, rotating past those that have no work or no credit."""
        for turn in [t for t in self._turns if t not in by_turn]:
            self._turns.remove(turn)
            self._credit.pop(turn, None)
        for turn in by_turn:
            if turn not in self._turns:
                self._turns.append(turn)
                self._credit[turn] = self.quantum
        while self._credit[self._turns[0]] <= 0:
            n_mixes = len({s.scales for s in by_turn[self._turns[0]]})
            self._credit[self._turns[0]] += self.quantum * n_mixes
            self._turns.rotate(-1)
        return self._turns[0]
