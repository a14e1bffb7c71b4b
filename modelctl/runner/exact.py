"""The deterministic lane."""

from __future__ import annotations

from collections.abc import Sequence as Many

from modelctl.errors import LoadFailed
from modelctl.runner.lane import Lane, Logits
from modelctl.runner.scheduler import Plan
from modelctl.runner.sequence import Sequence


class ExactLane(Lane):
    """Every batch has the same shape, so a sequence computes the same bits in any company.

    Kernels and the order of sums depend on the number of rows and on how cells lie, not on who else is there. So the
    context has one stream of cells per sequence, filled in order, and each batch has as many rows as there are streams:
    either one token of every stream, or that many tokens of one prompt. Rows with nothing to do hold a dummy token,
    whose cell is cut again.
    """

    @property
    def n_rows(self) -> int:
        return self.n_parallel

    def _n_rows(self, plan: Plan) -> int:
        return self.n_rows

    def _split(self, plan: Plan) -> list[Plan]:
        return [plan]

    def _decode(self, plan: Plan) -> tuple[Plan, list[tuple[Sequence, int]]]:
        self._set_mix(plan, [])
        prompts = [s for s, _ in plan.rows if not s.generating]
        if prompts:
            sequence = min(prompts, key=lambda s: s.started)
            return self._decode_prompt(sequence, plan)
        return self._decode_tokens(plan)

    def _decode_prompt(self, sequence: Sequence, plan: Plan) -> tuple[Plan, list[tuple[Sequence, int]]]:
        n = min(sequence.n_pending, self.n_rows)
        start = sequence.n_done
        tokens = sequence.tokens[start : start + n] + [0] * (self.n_rows - n)
        last = n == sequence.n_pending
        self._run(tokens, list(range(start, start + self.n_rows)), [sequence.slot] * self.n_rows, last)
        sequence.n_done += n
        if n < self.n_rows:
            self.context.cut(sequence.slot, sequence.n_done)
        return Plan(plan.scales, ((sequence, n),)), [(sequence, n - 1)] if last else []

    def _decode_tokens(self, plan: Plan) -> tuple[Plan, list[tuple[Sequence, int]]]:
        held = {s.slot: s.n_done for s in self.running} | self.cache.idle_lengths()
        live = {s.slot: s for s, _ in plan.rows}
        slots = range(self.n_rows)
        positions = [held.get(slot, 0) for slot in slots]
        self._run([live[s].tokens[-1] if s in live else 0 for s in slots], positions, list(slots), True)
        for slot in slots:
            if slot in live:
                live[slot].n_done += 1
            else:
                self.context.cut(slot, positions[slot])
        return Plan(plan.scales, tuple((s, 1) for s in live.values())), [(s, slot) for slot, s in live.items()]

    def _run(self, tokens: list[int], positions: list[int], slots: list[int], wanted: bool) -> None:
        """All rows' logits or none: their number is part of the shape too."""
        if not self.context.decode(tokens, positions, slots, [int(wanted)] * self.n_rows):
            raise LoadFailed("the deterministic context is full")

    def _logits(self, wanted: list[tuple[Sequence, int]]) -> tuple[Logits, Many[int]]:
        return self.context.logits(self.n_rows), [row for _, row in wanted]
