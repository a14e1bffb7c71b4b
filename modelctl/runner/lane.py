"""A lane: one llama.cpp context, the sequences that run in it, and their prefix cache.

`step()` is the program: plan -> set the mix -> decode -> sample -> deltas.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Many
from math import isfinite
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from modelctl.errors import LoadFailed, ModelctlError
from modelctl.runner import logprobs
from modelctl.runner.cache import PrefixCache
from modelctl.runner.costs import StepTimes
from modelctl.runner.frames import Delta
from modelctl.runner.llama import Base, Context
from modelctl.runner.mixed import LOOK, Mixed
from modelctl.runner.scheduler import Plan, Scheduler
from modelctl.runner.sequence import Scales, Sequence
from modelctl.runner.threads import Threads

Fail = Callable[[Sequence, ModelctlError], None]
Logits = npt.NDArray[np.float32]
N_MIXES_COUNTED = 1000  # scales are floats: there is no end of mixes, so the oldest counts go


class Lane:
    """The ordinary lane: cells and prefixes are shared, batches take whatever shape the work has."""

    def __init__(
        self,
        base: Base,
        context: Context,
        cache: PrefixCache,
        *,
        n_parallel: int,
        threads: Threads,
        fail: Fail,
        mixed: Mixed | None = None,
    ) -> None:
        """`fail` is told of each sequence that ends in an error; the others end in a Delta with `done`."""
        self.base = base
        self.threads = threads
        self.context = context
        self.cache = cache
        self.n_parallel = n_parallel
        self.scheduler = Scheduler(n_batch=context.n_batch)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.counts = {"steps": 0, "mixed_steps": 0, "rows": 0, "generated": 0, "preempted": 0, "failed": 0}
        self.by_mix: dict[Scales, Counter[str]] = defaultdict(Counter)
        self._tell_failed = fail
        self.mixed = mixed
        self.times = mixed.times if mixed else StepTimes()
        self._plan: Plan | None = None
        self._batches: list[Plan] = []  # of the plan
        self._plan_until = 0.0  # perf_counter

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def step(self) -> list[Delta]:
        """Advance what is due by one batch; the new text."""
        deltas: list[Delta] = []
        started = time.perf_counter()
        if started >= self._plan_until:
            deltas += self._reap()
            self._admit()
            self._make_plan(started)
            started = time.perf_counter()
        if (plan := self._plan) is not None:
            n_reserves = self.context.n_reserves
            self.context.set_threads(self.threads.n if plan.generates else self.threads.n_max)
            deltas += self._advance()
            now = time.perf_counter()
            self.scheduler.charge(plan, now - started)
            self._learn(plan, now - started, now, changed=self.context.n_reserves != n_reserves)
        return deltas

    def _make_plan(self, now: float) -> None:
        """For this step; while all generate and nobody comes or goes, for those that follow too."""
        self._plan = plan = self.scheduler.plan(self.running, self._together(now))
        self._batches = [] if plan is None else self._split(plan)
        if self.mixed is not None:
            change = self.scheduler.reserve_cost
            self._batches = [part for batch in self._batches for part in self.mixed.split(batch, now, change)]
        lasts = plan is not None and plan.generates and len(plan.rows) == len(self.running)
        look_again = self.mixed.look_again if self.mixed is not None else now + LOOK
        self._plan_until = look_again if lasts else 0.0
        for sequence, _ in plan.rows if plan else ():
            sequence.started = sequence.started or time.perf_counter_ns()

    def replan(self) -> None:
        """What the plan rests on has changed."""
        self._plan_until = 0.0

    def _together(self, now: float) -> frozenset[Scales]:
        """The mixes that share their batches."""
        if self.mixed is None:
            return frozenset()
        overhead = self.scheduler.reserve_cost / self.scheduler.quantum
        return self.mixed.choose([s.scales for s in self.running], now, overhead)

    def _learn(self, plan: Plan, seconds: float, now: float, *, changed: bool) -> None:
        """What a change of mix costs, for the scheduler, and whether a thread more or fewer is faster. Beside a thread
        that joins adapters every step is slow."""
        if not plan.generates or (self.mixed is not None and self.mixed.is_joining):
            return
        rows, masked = self._n_rows(plan), plan.is_masked
        if changed:
            extra = max(0.0, seconds - (self.times.usual(masked, rows) or seconds))
            self.scheduler.reserve_cost += 0.2 * (extra - self.scheduler.reserve_cost)
        else:
            self.times.learn(masked, rows, seconds, now)
            self.threads.record((masked, rows), seconds, now)

    def _learn_prompt(self, batch: Plan, seconds: float, n_reserves: int) -> None:
        if not batch.generates:
            seconds = max(0.0, seconds - n_reserves * self.scheduler.reserve_cost)
            self.times.learn_prompt(batch.is_masked, batch.n_rows, seconds, time.perf_counter())

    def _n_rows(self, plan: Plan) -> int:
        """Of the batch: with more of them a step takes longer."""
        return len(plan.rows)

    def _reap(self) -> list[Delta]:
        """End what was cancelled."""
        now = time.perf_counter_ns()
        gone = [s for s in (*self.running, *self.waiting) if s.cancelled]
        for sequence in gone:
            sequence.logprobs = []
        return [self._finish(sequence, "cancel", "", now) for sequence in gone]

    def _admit(self) -> None:
        while len(self.running) < self.n_parallel:
            sequence = self.scheduler.admit(self.waiting, self.running, time.perf_counter_ns())
            if sequence is None or not self._has_room(sequence):
                return
            self.waiting.remove(sequence)
            self.cache.admit(sequence, self.running)
            self.running.append(sequence)

    def remix(self, sequence: Sequence, scales: Scales) -> None:
        """Go on under another mix: what was computed stays for others, the sequence starts over with its tokens."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.cache.retire(sequence, time.perf_counter_ns())
            self.waiting.insert(0, sequence)
        sequence.scales, sequence.n_done = scales, 0

    def _has_room(self, sequence: Sequence) -> bool:
        """Admit by KV space. What is idle can go, what runs cannot; alone, a sequence always fits."""
        if not self.context.unified:
            return True  # each slot holds a whole context
        used = sum(len(s.tokens) for s in self.running)
        return not self.running or used + len(sequence.tokens) + len(self.running) < self.context.n_cells

    def _advance(self) -> list[Delta]:
        deltas: list[Delta] = []
        for batch in self._batches:
            started, n_reserves = time.perf_counter(), self.context.n_reserves
            try:
                done, wanted = self._decode(batch)
            except LoadFailed as error:
                for sequence, _ in batch.rows:
                    self._fail(sequence, error)
                continue
            self._learn_prompt(done, time.perf_counter() - started, self.context.n_reserves - n_reserves)
            self.counts["steps"] += 1
            self.counts["mixed_steps"] += done.scales is None
            self.counts["rows"] += done.n_rows
            deltas += self._sample(wanted)
        return deltas

    def _split(self, plan: Plan) -> list[Plan]:
        """What llama.cpp computes in one go. Where each sequence has its own cells, that is as many rows of each of
        several neighbours; what does not fit is computed batch by batch, here rather than there, so that it is known
        which rows are under way."""
        if self.context.unified:
            return [plan]
        batches: list[list[tuple[Sequence, int]]] = []
        for sequence, n in sorted(plan.rows, key=lambda row: (row[1], row[0].slot)):
            last = batches[-1][-1] if batches else None
            if last is not None and last[1] == n and last[0].slot + 1 == sequence.slot:
                batches[-1].append((sequence, n))
            else:
                batches.append([(sequence, n)])
        return [Plan(plan.scales, tuple(rows)) for rows in batches]

    def _set_mix(self, plan: Plan, wanted: list[int]) -> None:
        if plan.scales is None:
            assert self.mixed is not None
            self.mixed.enter(plan.mixes, wanted)
        else:
            if self.mixed is not None:
                self.mixed.leave()
            self.context.set_mix(plan.scales)

    def _decode(self, plan: Plan) -> tuple[Plan, list[tuple[Sequence, int]]]:
        """Decode the plan, making room as needed. Returns what was decoded in the end, and the batch rows whose
        logits are there now, in order."""
        while plan.rows:
            tokens, positions, slots, wanted, outputs = rows_of(plan)
            self._set_mix(plan, wanted)
            if self.context.decode(tokens, positions, slots, wanted):
                break
            if not self.cache.evict():
                plan = self._preempt(plan)
        else:
            return plan, []
        if plan.scales is None and self.mixed is not None and self.mixed.problem:
            return self._take_back(plan), []
        for sequence, n in plan.rows:
            sequence.n_done += n
        return plan, outputs

    def _take_back(self, plan: Plan) -> Plan:
        """What was computed cannot be trusted: forget it, and go on natively."""
        assert self.mixed is not None
        self.replan()
        self.mixed.refused = self.mixed.problem
        for sequence, _ in plan.rows:
            self.context.cut(sequence.slot, sequence.n_done)
        return Plan(None, ())

    def _preempt(self, plan: Plan) -> Plan:
        """No cell is free: the youngest goes back to the queue and is computed again later."""
        self.replan()
        if len(self.running) == 1:
            raise LoadFailed("the context is full", hint="ask for fewer tokens, or raise num_ctx")
        youngest = max(self.running, key=lambda s: s.arrived)
        self.cache.drop(youngest)
        self.running.remove(youngest)
        self.waiting.insert(0, youngest)
        self.counts["preempted"] += 1
        rows = tuple((s, n) for s, n in plan.rows if s is not youngest)
        return Plan(plan.scales, rows)

    def _sample(self, wanted: list[tuple[Sequence, int]]) -> list[Delta]:
        """Choose the next token of each of these sequences; what that adds to their texts."""
        if not wanted:
            return []
        now = time.perf_counter_ns()
        logits, places = self._logits(wanted)
        deltas: list[Delta] = []
        for (sequence, _), i, token in zip(wanted, places, self._choose(wanted, logits, places), strict=True):
            if not isfinite(logits.item(i, token)):
                self._fail(sequence, LoadFailed("the model computed NaN", hint="check the scales of the mix"))
            elif (delta := self._say(sequence, token, logits, i, now)) is not None:
                deltas.append(delta)
        return deltas

    def _logits(self, wanted: list[tuple[Sequence, int]]) -> tuple[Logits, Many[int]]:
        """[n_outputs, n_vocab], and where in it the rows of these are."""
        return self.context.logits(len(wanted)), range(len(wanted))

    def _choose(self, wanted: list[tuple[Sequence, int]], logits: Logits, places: Many[int]) -> list[int]:
        likeliest: list[int] = []
        tokens: list[int] = []
        for (sequence, _), i in zip(wanted, places, strict=True):
            if sequence.n_generated < sequence.n_endless:
                for token in self.base.eog:
                    logits[i, token] = -np.inf
        for (sequence, row), i in zip(wanted, places, strict=True):
            if sequence.sampler is not None:
                tokens.append(sequence.sampler.sample(self.context, row, logits[i]))
            else:
                likeliest = likeliest or logits.argmax(axis=1).tolist()  # of all in one call
                tokens.append(likeliest[i])
        return tokens

    def _say(self, sequence: Sequence, token: int, logits: Logits, i: int, now: int) -> Delta | None:
        """What the next token of a sequence, of row `i`, adds to its text."""
        sequence.first = sequence.first or now
        if self.base.is_eog(token):
            sequence.logprobs = []
            return self._finish(sequence, "stop", sequence.text.finish(), now)
        sequence.tokens.append(token)
        sequence.n_generated += 1
        self.counts["generated"] += 1
        text = sequence.text.feed(self.base.piece(token))
        if (n_top := sequence.sampling.logprobs) >= 0:
            sequence.logprobs = [logprobs.of(self.base, logits[i], token, n_top)]
        return self._delta(sequence, text, now)

    def _delta(self, sequence: Sequence, text: str, now: int) -> Delta | None:
        if sequence.text.stopped_by:
            return self._finish(sequence, "stop", text, now)
        full = len(sequence.tokens) >= sequence.n_ctx
        if sequence.n_generated >= sequence.n_predict or (full and not sequence.shift):
            return self._finish(sequence, "length", text + sequence.text.finish(), now)
        if full:
            self._shift(sequence)
        return Delta(sequence.id, text, 1, sequence.logprobs) if text or sequence.logprobs else None

    def _shift(self, sequence: Sequence) -> None:
        """The context is full: keep the first n_keep tokens and the later half of the rest, and compute them again, so
        that what follows equals a cold start on that text."""
        keep = min(sequence.n_keep, sequence.n_ctx // 2)
        rest = sequence.tokens[keep:]
        sequence.tokens = sequence.tokens[:keep] + rest[len(rest) // 2 :]
        self.context.cut(sequence.slot, 0)
        sequence.n_done = 0
        self.replan()

    def _finish(self, sequence: Sequence, reason: str, text: str, now: int) -> Delta:
        self._leave(sequence, now)
        return sequence.end(reason, text, now)

    def _fail(self, sequence: Sequence, error: ModelctlError) -> None:
        self.counts["failed"] += 1
        self._leave(sequence, 0, keep=False)
        self._tell_failed(sequence, error)

    def _leave(self, sequence: Sequence, now: int, *, keep: bool = True) -> None:
        self.replan()
        self._book(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
            if keep:
                self.cache.retire(sequence, now)
            else:
                self.cache.drop(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.sampler:
            sequence.sampler.close()
        if self.mixed is not None and not self.busy:
            self.mixed.rest()

    def close(self) -> None:
        """Before the context and the adapters."""
        if self.mixed is not None:
            self.mixed.close()

    def _book(self, sequence: Sequence) -> None:
        counts = self.by_mix[sequence.scales]
        counts["requests"] += 1
        counts["generated"] += sequence.n_generated
        counts["prompt_tokens"] += sequence.n_prompt
        counts["cached_tokens"] += sequence.n_cached
        counts["queue_ns"] += max(0, sequence.started - sequence.arrived) if sequence.started else 0
        if len(self.by_mix) > N_MIXES_COUNTED:
            del self.by_mix[next(iter(self.by_mix))]


class Rows(NamedTuple):
    """A batch, as llama.cpp wants it."""

    tokens: list[int]
    positions: list[int]
    slots: list[int]
    wanted: list[int]  # 1 where logits are: at the last pending token of a sequence
    outputs: list[tuple[Sequence, int]]  # whose they are, and in which row


def rows_of(plan: Plan) -> Rows:
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    wanted: list[int] = []
    outputs: list[tuple[Sequence, int]] = []
    for sequence, n in plan.rows:
        start, slot = sequence.n_done, sequence.slot
        is_last = start + n == len(sequence.tokens)
        if n == 1:  # nearly always, and several times as fast
            tokens.append(sequence.tokens[start])
            positions.append(start)
            slots.append(slot)
        else:
            tokens += sequence.tokens[start : start + n]
            positions += range(start, start + n)
            slots += [slot] * n
            wanted += [0] * (n - 1)
        wanted.append(is_last)
        if is_last:
            outputs.append((sequence, len(tokens) - 1))
    return Rows(tokens, positions, slots, wanted, outputs)
