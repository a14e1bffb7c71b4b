"""The engine: one thread, one base in memory, many sequences in one batch.

`step()` is the program: plan -> set the mix -> decode -> sample -> deliver. Everything that touches the context happens
on the thread that calls `run`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from modelctl.errors import LoadFailed, ModelctlError
from modelctl.runner import logprobs
from modelctl.runner.cache import PrefixCache
from modelctl.runner.frames import (
    AdapterFile,
    Attach,
    Attached,
    Cancel,
    Delta,
    Failed,
    FromRunner,
    Load,
    Ready,
    Stats,
    StatsReply,
    Step,
)
from modelctl.runner.llama import SEQ_MAX, Base, Context, can_offload
from modelctl.runner.scheduler import Plan, Scheduler
from modelctl.runner.sequence import Sequence

Emit = Callable[[FromRunner], None]
Work = Sequence | Attach | Cancel | Stats | None  # None: stop
IDLE_SLOTS = 24  # finished sequences kept for their prefixes, beside the n_parallel that run


class Engine:
    def __init__(self, load: Load, emit: Emit) -> None:
        """Loads the base and its adapters; raises `LoadFailed`."""
        started = time.perf_counter_ns()
        self.load = load
        self.base = Base(load.path, n_gpu_layers=load.n_gpu_layers, main_gpu=load.main_gpu, use_mmap=load.use_mmap)
        self.n_ctx = min(load.n_ctx, self.base.n_ctx_train) or self.base.n_ctx_train
        n_slots = min(load.n_parallel + IDLE_SLOTS, SEQ_MAX)
        self.context = Context(
            self.base,
            n_cells=max(load.n_cells, self.n_ctx) or 2 * self.n_ctx,
            n_seq=n_slots,
            n_batch=load.n_batch,
            n_threads=load.n_threads or len(os.sched_getaffinity(0)),
        )
        self.cache = PrefixCache(self.context, n_slots, can_cut=self.base.can_cut)
        self.scheduler = Scheduler(n_batch=self.context.n_batch)
        self.inbox: SimpleQueue[Work] = SimpleQueue()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._emit = emit
        self._counts = {"steps": 0, "rows": 0, "generated": 0, "preempted": 0, "failed": 0}
        self.attach(load.adapters)
        self.load_ns = time.perf_counter_ns() - started

    def ready(self) -> Ready:
        return Ready(
            load_ns=self.load_ns,
            n_ctx=self.n_ctx,
            n_ctx_train=self.base.n_ctx_train,
            n_params=self.base.n_params,
            model_bytes=self.base.n_bytes,
            kv_bytes=self.context.n_kv_bytes,
            gpu_offload=can_offload(),
            gpu_layers=self.load.n_gpu_layers if can_offload() else 0,
            device="GPU" if can_offload() and self.load.n_gpu_layers != 0 else "CPU",
        )

    def attach(self, adapters: Iterable[AdapterFile]) -> None:
        """Load adapters, all or none, and prove them with one decode: some bad files fail only there."""
        new = [a for a in adapters if a.digest not in self.base.attached]
        loaded: list[str] = []
        try:
            for adapter in new:
                self.base.attach(adapter.digest, adapter.path)
                loaded.append(adapter.digest)
            self._probe(loaded)
        except LoadFailed:
            self.context.set_mix(())
            for digest in loaded:
                self.base.detach(digest)
            raise

    def _probe(self, digests: list[str]) -> None:
        if digests and not self._finite([(d, 1.0) for d in digests]):
            bad = next((d for d in digests if not self._finite([(d, 1.0)])), None)
            what = f"the adapter {bad[:19]} computes" if bad else "these adapters together compute"
            raise LoadFailed(
                f"{what} NaN or infinity on this base", hint="the file is damaged, or made for another base"
            )

    def _finite(self, scales: list[tuple[str, float]]) -> bool:
        self.context.set_mix(tuple(scales))
        while not self.context.decode([max(self.base.bos, 0)] * 2, [0, 1], [0, 0], [0, 1]):
            if not self.cache.evict():
                return True  # busy to the last cell; the sampler checks every logit it uses anyway
        finite = bool(np.isfinite(self.context.logits(1)).all())
        self.context.cut(0, 0)
        return finite

    # the thread

    def run(self) -> None:
        """Serve the inbox until it brings None."""
        while self._take_work():
            if self.running or self.waiting:
                self.step()

    def _take_work(self) -> bool:
        """Handle what has arrived; sleep while there is nothing to do. False: stop."""
        try:
            while True:
                work = self.inbox.get(block=not (self.running or self.waiting))
                if work is None:
                    return False
                self._handle(work)
        except Empty:
            return True

    def _handle(self, work: Sequence | Attach | Cancel | Stats) -> None:
        match work:
            case Sequence():
                self.waiting.append(work)
            case Cancel(id=ident):
                for sequence in (*self.running, *self.waiting):
                    if sequence.id == ident:
                        sequence.cancelled = True
            case Attach(id=ident, adapters=adapters):
                started = time.perf_counter_ns()
                try:
                    self.attach(adapters)
                except ModelctlError as error:
                    self._emit(Failed(ident, error.status, error.message, error.hint or ""))
                else:
                    self._emit(Attached(ident, time.perf_counter_ns() - started))
            case Stats(id=ident):
                self._emit(StatsReply(ident, self.stats()))

    def step(self) -> None:
        deltas = self._reap()
        self._admit()
        plan = self.scheduler.plan(self.running)
        if plan is not None:
            started = time.perf_counter()
            deltas += self._advance(plan)
            self.scheduler.charge(plan, time.perf_counter() - started)
        if deltas:
            self._emit(Step(deltas))

    def _reap(self) -> list[Delta]:
        """End what was cancelled."""
        now = time.perf_counter_ns()
        gone = [s for s in (*self.running, *self.waiting) if s.cancelled]
        return [self._finish(sequence, "cancel", "", now) for sequence in gone]

    def _admit(self) -> None:
        while len(self.running) < self.load.n_parallel:
            sequence = self.scheduler.admit(self.waiting, self.running)
            if sequence is None or not self._has_room(sequence):
                return
            self.waiting.remove(sequence)
            self.cache.admit(sequence, self.running)
            self.running.append(sequence)

    def _has_room(self, sequence: Sequence) -> bool:
        """Admit by KV space. What is idle can go, what runs cannot; alone, a sequence always fits."""
        used = sum(len(s.tokens) for s in self.running)
        return not self.running or used + len(sequence.tokens) + len(self.running) < self.context.n_cells

    def _advance(self, plan: Plan) -> list[Delta]:
        try:
            plan = self._decode(plan)
            return self._sample(plan)
        except LoadFailed as error:
            for sequence, _ in plan.rows:
                self._fail(sequence, error)
            return []

    def _decode(self, plan: Plan) -> Plan:
        """Decode the plan, making room as needed; returns the plan that was decoded in the end."""
        now = time.perf_counter_ns()
        for sequence, _ in plan.rows:
            sequence.started = sequence.started or now
        self.context.set_mix(plan.scales)
        while not self.context.decode(*_rows(plan)):
            if not self.cache.evict():
                plan = self._preempt(plan)
        for sequence, n in plan.rows:
            sequence.n_done += n
        self._counts["steps"] += 1
        self._counts["rows"] += sum(n for _, n in plan.rows)
        return plan

    def _preempt(self, plan: Plan) -> Plan:
        """No cell is free: the youngest goes back to the queue and is computed again later."""
        youngest = max(self.running, key=lambda s: s.arrived)
        if len(self.running) == 1:
            raise LoadFailed("the context is full", hint="ask for fewer tokens, or raise num_ctx")
        self.cache.drop(youngest)
        self.running.remove(youngest)
        self.waiting.insert(0, youngest)
        self._counts["preempted"] += 1
        rows = tuple((s, n) for s, n in plan.rows if s is not youngest)
        return Plan(plan.scales, rows) if rows else self.scheduler.plan(self.running) or plan

    def _sample(self, plan: Plan) -> list[Delta]:
        ends = np.cumsum([n for _, n in plan.rows]) - 1
        wanted = [(s, int(end)) for (s, _), end in zip(plan.rows, ends, strict=True) if s.n_pending == 0]
        if not wanted:
            return []
        logits = self.context.logits(len(wanted))
        now = time.perf_counter_ns()
        deltas = (self._next(s, row, logits[i], now) for i, (s, row) in enumerate(wanted))
        return [delta for delta in deltas if delta is not None]

    def _next(self, sequence: Sequence, row: int, logits: npt.NDArray[np.float32], now: int) -> Delta | None:
        """Sample one token of one sequence and say what it adds to its text."""
        if sequence.n_generated < sequence.sampling.min_tokens or sequence.sampling.ignore_eos:
            logits[list(self.base.eog)] = -np.inf
        token = sequence.sampler.sample(self.context, row) if sequence.sampler else int(logits.argmax())
        if not np.isfinite(logits[token]):
            self._fail(sequence, LoadFailed("the model computed NaN", hint="check the scales of the mix"))
            return None
        sequence.first = sequence.first or now
        if token in self.base.eog:
            return self._finish(sequence, "stop", sequence.text.finish(), now)
        sequence.tokens.append(token)
        sequence.n_generated += 1
        self._counts["generated"] += 1
        text = sequence.text.feed(self.base.piece(token))
        if sequence.sampling.logprobs >= 0:
            sequence.logprobs = [logprobs.of(self.base, logits, token, sequence.sampling.logprobs)]
        return self._delta(sequence, text, now)

    def _delta(self, sequence: Sequence, text: str, now: int) -> Delta | None:
        if sequence.text.stopped_by:
            return self._finish(sequence, "stop", text, now)
        if sequence.n_generated >= sequence.n_predict:
            return self._finish(sequence, "length", text + sequence.text.finish(), now)
        if len(sequence.tokens) >= sequence.n_ctx:
            if not sequence.shift:
                return self._finish(sequence, "length", text + sequence.text.finish(), now)
            self._shift(sequence)
        if text or sequence.logprobs:
            return Delta(sequence.id, text, 1, sequence.logprobs)
        return None

    def _shift(self, sequence: Sequence) -> None:
        """The context is full: keep the first n_keep tokens and the later half of the rest, and compute them again, so
        that what follows equals a cold start on that text."""
        keep = min(sequence.n_keep, sequence.n_ctx // 2)
        rest = sequence.tokens[keep:]
        sequence.tokens = sequence.tokens[:keep] + rest[len(rest) // 2 :]
        self.context.cut(sequence.slot, 0)
        sequence.n_done = 0

    def _finish(self, sequence: Sequence, reason: str, text: str, now: int) -> Delta:
        self._leave(sequence, now)
        return sequence.end(reason, text, now)

    def _fail(self, sequence: Sequence, error: ModelctlError) -> None:
        self._counts["failed"] += 1
        self._leave(sequence, time.perf_counter_ns(), keep=False)
        self._emit(Failed(sequence.id, error.status, error.message, error.hint or ""))

    def _leave(self, sequence: Sequence, now: int, *, keep: bool = True) -> None:
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

    def stats(self) -> dict[str, Any]:
        return {
            **self._counts,
            "running": len(self.running),
            "waiting": len(self.waiting),
            "reserves": self.context.n_reserves,
            "cache_hits": self.cache.n_hits,
            "cache_tokens_saved": self.cache.n_saved,
            "cache_idle": self.cache.n_idle,
            "attached": sorted(self.base.attached),
        }

    def close(self) -> None:
        self.context.close()
        self.base.close()


def _rows(plan: Plan) -> tuple[list[int], list[int], list[int], list[int]]:
    """tokens, positions, slots, and 1 where logits are wanted: at the last pending token of a sequence."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    wanted: list[int] = []
    for s, n in plan.rows:
        tokens += s.tokens[s.n_done : s.n_done + n]
        positions += range(s.n_done, s.n_done + n)
        slots += [s.slot] * n
        wanted += [0] * (n - 1)
        wanted.append(int(n == s.n_pending))
    return tokens, positions, slots, wanted
