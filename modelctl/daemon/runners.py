"""Runners: which bases are in memory, who may use them, and when they go.

All of it runs on one event loop, so what happens between two awaits is atomic; every decision that gates a change is
taken there, never on what was read before an await.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from modelctl.config import Config
from modelctl.daemon.metrics import BaseState
from modelctl.daemon.residents import Deaths, Resident, Tenant, load_fields, next_to_go
from modelctl.daemon.runner_process import RunnerProcess
from modelctl.errors import Busy, RunnerDied
from modelctl.model import Model
from modelctl.runner.frames import AdapterFile, Load, Ready

log = logging.getLogger("modelctl.daemon")

STATS_TIMEOUT = 5.0  # seconds; a runner answers between two steps

Spawn = Callable[..., RunnerProcess]


@dataclass(frozen=True)
class Lease:
    """The right to use a loaded base, adapters attached, until the `async with` ends."""

    process: RunnerProcess
    ready: Ready
    load_ns: int  # waited for the load; 0 when it was there


@dataclass(frozen=True)
class Loaded:
    """A model name in memory. `expires`: loop time, infinite for never."""

    model: Model
    expires: float
    ready: Ready
    size: int  # bytes: base, adapters and KV cache
    pid: int
    load_count: int
    users: int


class Runners:
    """One runner a base digest; every name built on that base is served by it. `spawn` makes the processes."""

    def __init__(self, config: Config, spawn: Spawn = RunnerProcess) -> None:
        self._config = config
        self._spawn = spawn
        self._residents: dict[str, Resident] = {}
        self._load_counts: Counter[str] = Counter()
        self._deaths = Deaths()
        self._inside = 0  # requests, waiting or served
        self._door = asyncio.Lock()  # fair: those who need a place queue here, first come, first served
        self._closing = False
        self._loop = asyncio.get_running_loop()

    # using

    @asynccontextmanager
    async def lease(
        self, model: Model, options: dict[str, Any], keep_alive: float | None = None
    ) -> AsyncIterator[Lease]:
        """Load the model's base unless it is there, attach what is missing, and keep both until the block ends.

        Raises `Busy` when too many wait, `LoadFailed`, `RunnerDied`.
        """
        self._check_queue()
        keep_alive = self._config.keep_alive if keep_alive is None else keep_alive
        wanted = {"n_ctx": self._config.n_ctx, **load_fields(options)}
        started = self._loop.time()
        self._inside += 1
        try:
            resident, tenant = await self._admit(model, wanted, keep_alive)
            try:
                was_there = resident.ready is not None
                ready = await asyncio.shield(resident.loading)
                await self._attach(resident, model)
                yield Lease(resident.process, ready, 0 if was_there else int((self._loop.time() - started) * 1e9))
            finally:
                resident.leave(tenant, self._loop.time())
                self._expire(resident)
        finally:
            self._inside -= 1

    @property
    def busy(self) -> bool:
        """Whether a request waits or is served."""
        return self._inside > 0

    def loaded(self) -> list[Loaded]:
        """Every name in memory, longest expiry first."""
        now = self._loop.time()
        found = [
            self._describe(resident, resident.ready, tenant, now)
            for resident in self._residents.values()
            for tenant in resident.tenants.values()
            if resident.ready is not None
        ]
        return sorted(found, key=lambda entry: (-entry.expires, entry.model.name))

    async def states(self) -> list[BaseState]:
        """Every base that was ever loaded, with what its runner counts while it is there."""
        return await asyncio.gather(*(self._state(base) for base in list(self._load_counts)))

    async def _state(self, base: str) -> BaseState:
        resident = self._residents.get(base)
        loads = self._load_counts[base]
        if resident is None or resident.ready is None:
            return BaseState(base, (), (), resident.users if resident else 0, loads, {})
        models = [tenant.model for tenant in resident.tenants.values()]
        adapters = tuple(adapter for model in models for adapter in model.adapters)
        stats: dict[str, Any] = {}
        with contextlib.suppress(TimeoutError, RunnerDied):
            stats = (await asyncio.wait_for(resident.process.stats(), STATS_TIMEOUT)).values
        return BaseState(base, tuple(model.name for model in models), adapters, resident.users, loads, stats)

    async def stop(self, name: str) -> bool:
        """The name is not kept loaded: gone now, or, while it is used, right after. False when it was not loaded."""
        for resident in self._residents.values():
            if name in resident.tenants:
                resident.tenants[name].dismiss()
                self._expire(resident)
                if resident.ending is not None:
                    await asyncio.shield(resident.ending)
                return True
        return False

    def refuse(self) -> None:
        """From now on nobody gets in, and who still waits for a load is told so; whoever is served may finish."""
        self._closing = True
        for resident in self._residents.values():
            if resident.ready is None:
                self._end(resident)

    async def close(self) -> None:
        """No runner is left. Who was being served gets an error."""
        self.refuse()
        await asyncio.gather(*(self._end(resident) for resident in self._residents.values()))

    # admission

    def _check_queue(self) -> None:
        if self._closing:
            raise Busy("the daemon is stopping")
        room = self._config.max_queue + self._config.num_parallel * max(1, len(self._residents))
        if self._inside >= room:
            hint = "try again in a moment; MODELCTL_MAX_QUEUE sets how many may wait"
            raise Busy("server busy, maximum pending requests exceeded", hint=hint)

    async def _admit(self, model: Model, wanted: dict[str, Any], keep_alive: float) -> tuple[Resident, Tenant]:
        resident = self._residents.get(model.base_digest)
        if resident is not None and resident.welcomes(wanted):
            return resident, self._enter(resident, model, keep_alive)
        async with self._door:
            resident = await self._place(model, wanted)
            return resident, self._enter(resident, model, keep_alive)

    def _enter(self, resident: Resident, model: Model, keep_alive: float) -> Tenant:
        for other in list(self._residents.values()):  # the name was created anew, on another base
            if other is not resident and model.name in other.tenants:
                other.tenants[model.name].dismiss()
                self._expire(other)
        return resident.enter(model, keep_alive, self._loop.time())

    async def _place(self, model: Model, wanted: dict[str, Any]) -> Resident:
        """A resident that welcomes the request; whoever is in its way is waited for, and ended."""
        fields = wanted
        while True:
            present = self._residents.get(model.base_digest)
            if present is not None and present.welcomes(wanted):
                return present
            if present is not None:
                fields = present.merged(wanted)
                await self._evict(present)
            elif len(self._residents) >= self._config.max_loaded:
                await self._evict(next_to_go(self._residents.values()))
            else:
                return self._start(model, fields)

    async def _evict(self, resident: Resident) -> None:
        resident.leaving = True
        try:
            if resident.ending is None and resident.users:
                await resident.idle.wait()
            await asyncio.shield(self._end(resident))
        finally:  # whoever wanted the place may have left before it was free
            resident.leaving = False

    # loading

    def _start(self, model: Model, fields: dict[str, Any]) -> Resident:
        if self._closing:
            raise Busy("the daemon is stopping")
        self._deaths.check(model.base_digest, self._loop.time(), model.name)
        load = Load(
            str(model.base_path),
            n_parallel=self._config.num_parallel,
            mixed=self._config.mixed_batches,
            mixed_rank=self._config.mixed_rank,
            adapters=_adapter_files(model),
            **fields,
        )
        timeout = self._config.load_timeout if self._config.load_timeout >= 0 else None
        process = self._spawn(load, model.name, timeout=timeout, on_exit=self._lost)
        loading = self._loop.create_task(self._load(model.base_digest, process))
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left to see it
        resident = Resident(model.base_digest, process, fields, loading)
        resident.attached = {adapter.digest: adapter.size for adapter in model.adapters}
        self._residents[resident.base] = resident
        return resident

    async def _load(self, base: str, process: RunnerProcess) -> Ready:
        try:
            ready = await process.start()
        except BaseException:
            self._forget(process)
            raise
        self._load_counts[base] += 1
        log.info("loaded %s in %.2f s, runner %d", process.model, ready.load_ns / 1e9, process.pid)
        return ready

    async def _attach(self, resident: Resident, model: Model) -> None:
        if resident.attached.keys() >= {adapter.digest for adapter in model.adapters}:
            return
        async with resident.attaching:
            missing = [file for file in _adapter_files(model) if file.digest not in resident.attached]
            if missing:
                await resident.process.attach(missing, model.name)
                resident.attached.update({adapter.digest: adapter.size for adapter in model.adapters})

    # leaving

    def _expire(self, resident: Resident) -> None:
        """Forget the names whose time is up. With none left, end the runner; else look again when the next is due."""
        if resident.timer is not None:
            resident.timer.cancel()
            resident.timer = None
        if resident.ending is not None or self._residents.get(resident.base) is not resident:
            return
        resident.expire(self._loop.time())
        if not resident.tenants:
            self._end(resident)
        elif (due := resident.next_expiry()) < math.inf:
            resident.timer = self._loop.call_at(due, self._expire, resident)

    def _end(self, resident: Resident) -> asyncio.Task[None]:
        """Stop its process, once; when the task is done its place is free."""
        if resident.ending is None:
            resident.ending = self._loop.create_task(self._stop(resident.process))
        return resident.ending

    async def _stop(self, process: RunnerProcess) -> None:
        await process.stop()
        self._forget(process)
        log.info("unloaded %s, runner %d", process.model, process.pid)

    def _lost(self, process: RunnerProcess) -> None:
        """The process is gone, by our wish or not."""
        resident = self._forget(process)
        if resident is not None and not process.stopping:
            self._deaths.record(resident.base, self._loop.time(), process.last_words)

    def _forget(self, process: RunnerProcess) -> Resident | None:
        found = next((r for r in self._residents.values() if r.process is process), None)
        if found is not None:
            del self._residents[found.base]
            if found.timer is not None:
                found.timer.cancel()
        return found

    def _describe(self, resident: Resident, ready: Ready, tenant: Tenant, now: float) -> Loaded:
        return Loaded(
            model=tenant.model,
            expires=tenant.expires_at(now),
            ready=ready,
            size=ready.model_bytes + ready.kv_bytes + sum(resident.attached.values()),
            pid=resident.process.pid,
            load_count=self._load_counts[resident.base],
            users=tenant.users,
        )


def _adapter_files(model: Model) -> list[AdapterFile]:
    """Each file once, whatever the number of names it goes by."""
    return [AdapterFile(digest, path) for digest, path in {a.digest: str(a.path) for a in model.adapters}.items()]
