"""The engine: one thread that owns one base in memory, its adapters, and the lanes its sequences run in.

Requests come in through `inbox`, frames go out through `emit`. Everything that touches llama.cpp's contexts happens on
the thread that calls `run`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from modelctl.errors import BadRequest, LoadFailed, ModelctlError
from modelctl.runner.cache import PrefixCache
from modelctl.runner.embed import Embedder
from modelctl.runner.exact import ExactLane
from modelctl.runner.frames import (
    AdapterFile,
    Attach,
    Attached,
    Cancel,
    Embed,
    Embedded,
    Failed,
    FromRunner,
    Load,
    Ready,
    Remix,
    Stats,
    StatsReply,
    Step,
)
from modelctl.runner.joined import MemoryFile, Source, needs_padding, pad
from modelctl.runner.lane import Lane
from modelctl.runner.layout import layout, total_memory
from modelctl.runner.llama import SEQ_MAX, Base, Context, EvalCallback, can_offload, gomp_parallel, op_number
from modelctl.runner.mask import Masker
from modelctl.runner.mixed import Mixed
from modelctl.runner.sequence import Sequence
from modelctl.runner.spin import Spin
from modelctl.runner.threads import Threads

Emit = Callable[[FromRunner], None]
Work = Sequence | Attach | Cancel | Remix | Embed | Stats
N_EMBED = 2048  # tokens of one embedding batch, and so of one input at most
N_EXACT = 4  # rows of a deterministic batch, and so deterministic sequences that may run at once


class Engine:
    def __init__(self, load: Load, emit: Emit) -> None:
        """Loads the base and its adapters; raises `LoadFailed`."""
        started = time.perf_counter_ns()
        self.load = load
        self.inbox: SimpleQueue[Work | None] = SimpleQueue()  # None: stop
        self._emit = emit
        self.base = Base(load.path, n_gpu_layers=load.n_gpu_layers, main_gpu=load.main_gpu, use_mmap=load.use_mmap)
        self.n_ctx = min(load.n_ctx or self.base.n_ctx_train, self.base.n_ctx_train)
        self.n_threads = load.n_threads or physical_cores()
        self.embedder: Embedder | None = None  # this and the next are made when first asked for
        self.exact: Lane | None = None  # costs a KV cache of its own
        self._embedding: deque[tuple[int, Iterator[Embedded | Failed | None]]] = deque()
        self._contexts: list[Context] = []
        self.spin = Spin(gomp_parallel(), lambda: any(lane.threads.reduced for lane in self.lanes))
        self._paths: dict[str, str] = {}  # of the attached adapters, by digest
        self._padded: dict[str, MemoryFile] = {}  # of these, by digest, the copies with a suitable rank
        try:
            self.shared = self._shared_lane()
            self.attach(load.adapters)
        except BaseException:
            self.close()
            raise
        self.load_ns = time.perf_counter_ns() - started

    def _shared_lane(self) -> Lane:
        n_parallel = min(self.load.n_parallel, SEQ_MAX // 2)
        own = 0 if self._on_gpu or self.load.n_cells or not self.base.can_cut else self.n_ctx * self.base.cell_bytes
        n_slots, unified = layout(n_parallel, own, total_memory())
        n_cells = max(self.load.n_cells or 2 * self.n_ctx, self.n_ctx) if unified else n_slots * self.n_ctx
        masker = Masker(self.load.n_batch, op_number)
        context = self._context(n_cells, n_slots, self.load.n_batch, unified=unified, callback=masker.callback)
        cache = PrefixCache(context, n_slots, can_cut=self.base.can_cut, own_cells=not unified)
        mixed = Mixed(
            self.base,
            context,
            masker,
            mode=self.load.mixed,
            max_rank=self.load.mixed_rank,
            paths=self._paths,
            probe=self._probe,
        )
        if self._on_gpu:
            mixed.refused = "the weights are not in the processor's memory"
        elif not self.base.can_cut:
            mixed.refused = "this model's memory is recurrent"
        threads = self._threads()
        return Lane(self.base, context, cache, n_parallel=n_parallel, threads=threads, fail=self._fail, mixed=mixed)

    @property
    def _on_gpu(self) -> bool:
        return can_offload() and self.load.n_gpu_layers != 0

    def _exact_lane(self) -> Lane:
        n_cells = N_EXACT * (self.n_ctx + N_EXACT)  # each stream with room for dummies
        context = self._context(n_cells, N_EXACT, N_EXACT, unified=False)
        cache = PrefixCache(context, N_EXACT, can_cut=self.base.can_cut, can_share=False)
        return ExactLane(self.base, context, cache, n_parallel=N_EXACT, threads=self._threads(), fail=self._fail)

    def _threads(self) -> Threads:
        return Threads(self.n_threads, fixed=self.load.n_threads > 0)

    def _context(
        self, n_cells: int, n_seq: int, n_batch: int, *, unified: bool, callback: EvalCallback | None = None
    ) -> Context:
        context = Context(
            self.base,
            n_cells=n_cells,
            n_seq=n_seq,
            n_batch=n_batch,
            n_threads=self.n_threads,
            unified=unified,
            callback=callback,
        )
        self._contexts.append(context)
        return context

    @property
    def lanes(self) -> list[Lane]:
        return [self.shared] if self.exact is None else [self.shared, self.exact]

    @property
    def busy(self) -> bool:
        return bool(self._embedding) or any(lane.busy for lane in self.lanes)

    def ready(self) -> Ready:
        return Ready(
            load_ns=self.load_ns,
            n_ctx=self.n_ctx,
            n_ctx_train=self.base.n_ctx_train,
            n_params=self.base.n_params,
            model_bytes=self.base.n_bytes,
            kv_bytes=self.shared.context.n_kv_bytes,
            gpu_offload=can_offload(),
            gpu_layers=self.load.n_gpu_layers if self._on_gpu else 0,
            device="GPU" if self._on_gpu else "CPU",
        )

    # the thread

    def run(self) -> None:
        """Serve the inbox until it brings None."""
        busy = False
        while self._take_work(wait=not busy):
            busy = self.step()

    def _take_work(self, *, wait: bool) -> bool:
        """Handle what has arrived; `wait`: sleep until something has. False: stop."""
        while wait or not self.inbox.empty():
            work = self.inbox.get()
            if work is None:
                return False
            self.handle(work)
            wait = False
        return True

    def step(self) -> bool:
        """One batch in each lane that has work, and one of embeddings. Whether there is more to do."""
        self.spin.decoding(True)
        deltas = [delta for lane in self.lanes if lane.busy for delta in lane.step()]
        if deltas:
            self._emit(Step(deltas))
        if self._embedding:
            self._embed_next()
        self.spin.decoding(busy := self.busy)
        return busy

    def handle(self, work: Work) -> None:
        for lane in self.lanes:
            lane.replan()
        try:
            match work:
                case Sequence():
                    self._lane_for(work).waiting.append(work)
                case Cancel():
                    self._cancel(work.id)
                case Attach():
                    started = time.perf_counter_ns()
                    self.attach(work.adapters)
                    self._emit(Attached(work.id, time.perf_counter_ns() - started))
                case Remix():
                    self._remix(work)
                case Embed():
                    self._embed(work)
                case Stats():
                    self._emit(StatsReply(work.id, self.stats()))
        except ModelctlError as error:
            self._emit(Failed(work.id, error.status, error.message, error.hint or ""))

    def _lane_for(self, sequence: Sequence) -> Lane:
        if not sequence.sampling.deterministic:
            return self.shared
        if not self.base.can_cut:
            raise BadRequest("this model cannot be deterministic: its recurrent memory cannot be cut")
        if self.exact is None:
            self.exact = self._exact_lane()
        return self.exact

    def _cancel(self, ident: int) -> None:
        for lane in self.lanes:
            for sequence in (*lane.running, *lane.waiting):
                if sequence.id == ident:
                    sequence.cancelled = True

    def _remix(self, work: Remix) -> None:
        for lane in self.lanes:
            for sequence in (*lane.running, *lane.waiting):
                if sequence.id in work.ids:
                    lane.remix(sequence, tuple(work.mix))

    def _embed(self, work: Embed) -> None:
        if self.embedder is None:
            self.embedder = Embedder(self.base, min(self.n_ctx, N_EMBED), self.n_threads)
        self._embedding.append((work.id, self.embedder.embed(work)))

    def _embed_next(self) -> None:
        """One batch for the first who asked."""
        ident, batches = self._embedding[0]
        try:
            answer = next(batches)
        except LoadFailed as error:
            answer = Failed(ident, error.status, error.message, error.hint or "")
        if answer is not None:
            self._embedding.popleft()
            self._emit(answer)

    def attach(self, adapters: Iterable[AdapterFile]) -> None:
        """Load adapters, all or none, and prove them with one decode: some bad files fail only there."""
        before = set(self._paths)
        try:
            for adapter in adapters:
                if adapter.digest not in self._paths:
                    path = self._joinable(adapter)
                    self.base.attach(adapter.digest, path)
                    self._paths[adapter.digest] = path
            self._prove([digest for digest in self._paths if digest not in before])
        except LoadFailed:
            self.shared.context.set_mix(())
            for digest in self._paths.keys() - before:
                self.base.detach(digest)
                del self._paths[digest]
            for digest in self._padded.keys() - before:
                self._padded.pop(digest).close()
            raise

    def _joinable(self, adapter: AdapterFile) -> str:
        """The path of the adapter's file, or of a copy in memory whose rank suits mixed batches."""
        if not needs_padding(adapter.path):
            return adapter.path
        self._padded[adapter.digest] = padded = pad(Source(adapter.digest, adapter.path))
        return padded.path

    def _prove(self, digests: list[str]) -> None:
        if digests and not self._finite(digests):
            bad = next((d for d in digests if not self._finite([d])), None)
            what = f"the adapter {bad[:19]} computes" if bad else "these adapters together compute"
            raise LoadFailed(f"{what} NaN or infinity on this base", hint="the file is damaged, or for another base")

    def _finite(self, digests: list[str]) -> bool:
        """One decode with all of them at scale 1."""
        context = self.shared.context
        context.set_threads(1)  # thousands of tiny products: threads would only wait for each other
        context.set_mix(tuple((d, 1.0) for d in digests))
        self._probe()
        context.set_threads(self.n_threads)
        return bool(np.isfinite(context.logits(2)).all())

    def _probe(self) -> None:
        """Decode two tokens in a slot that nothing uses; both have logits."""
        context, cache = self.shared.context, self.shared.cache
        slot = cache.borrow()
        while not context.decode([max(self.base.bos, 0)] * 2, [0, 1], [slot] * 2, [1, 1]):
            if not cache.evict():
                raise LoadFailed("no memory is free to try the adapter", hint="try again when less is running")
        cache.give_back(slot)

    def _fail(self, sequence: Sequence, error: ModelctlError) -> None:
        self._emit(Failed(sequence.id, error.status, error.message, error.hint or ""))

    def stats(self) -> dict[str, Any]:
        caches = [lane.cache for lane in self.lanes]
        totals = {key: sum(lane.counts[key] for lane in self.lanes) for key in self.shared.counts}
        return {
            **totals,
            "running": sum(len(lane.running) for lane in self.lanes),
            "waiting": sum(len(lane.waiting) for lane in self.lanes),
            "reserves": sum(lane.context.n_reserves for lane in self.lanes),
            "cache_hits": sum(cache.n_hits for cache in caches),
            "cache_tokens_saved": sum(cache.n_saved for cache in caches),
            "cache_idle": sum(cache.n_idle for cache in caches),
            "threads": self.shared.threads.n,
            "reserve_ms": round(self.shared.scheduler.reserve_cost * 1e3, 3),
            "attached": sorted(self._paths),
            "batches": self.shared.mixed.why if self.shared.mixed else "",
            "mixes": [{"mix": list(m), **c} for lane in self.lanes for m, c in lane.by_mix.items()],
        }

    def close(self) -> None:
        self.spin.close()
        for lane in self.lanes if hasattr(self, "shared") else ():
            lane.close()
        for context in self._contexts:
            context.close()
        if self.embedder:
            self.embedder.close()
        self.base.close()
        for padded in self._padded.values():
            padded.close()


def physical_cores() -> int:
    """Of those this process may use: hyper-threads of one core only wait for each other."""
    allowed = os.sched_getaffinity(0)
    siblings = Path("/sys/devices/system/cpu")
    cores = set()
    for cpu in allowed:
        try:
            cores.add((siblings / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(allowed)
    return len(cores)
