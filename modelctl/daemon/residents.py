"""What is in memory: one Resident a base, with a Tenant for every model name that is kept loaded on it.

State and the questions about it; whatever takes time or changes a process is in `runners`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from modelctl.daemon.runner_process import RunnerProcess
from modelctl.errors import RunnerDied
from modelctl.model import Model
from modelctl.runner.frames import Ready

# A request's option -> the Load field. Those in RELOADING end a running base that was loaded otherwise.
LOAD_OPTIONS = {
    "num_ctx": "n_ctx",
    "num_batch": "n_batch",
    "num_gpu": "n_gpu_layers",
    "main_gpu": "main_gpu",
    "use_mmap": "use_mmap",
    "num_thread": "n_threads",
}
RELOADING = ("n_gpu_layers", "main_gpu", "use_mmap")
MAX_DEATHS, WINDOW = 3, 30.0  # that many in so many seconds, and a base is not started again until they are past


def load_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The Load fields that the options name; the others may be as they are."""
    return {LOAD_OPTIONS[key]: value for key, value in options.items() if key in LOAD_OPTIONS and value is not None}


@dataclass
class Tenant:
    """A model name on a base. `expires` (loop time) counts only while nobody uses it."""

    model: Model
    keep_alive: float
    users: int = 0
    expires: float = math.inf

    def dismiss(self) -> None:
        """Keep it no longer than it is used."""
        self.keep_alive, self.expires = 0.0, -math.inf

    def expires_at(self, now: float) -> float:
        """Loop time; while in use, as if that use ended now."""
        return _after(now, self.keep_alive) if self.users else self.expires


@dataclass
class Resident:
    """One base in memory, or on its way there (`loading`) or out (`ending`).

    `leaving` turns new users away although it still serves the present ones: somebody waits for its place.
    """

    base: str  # its digest
    process: RunnerProcess
    fields: dict[str, Any]  # of its Load, those somebody asked for
    loading: asyncio.Task[Ready]
    ending: asyncio.Task[None] | None = None
    leaving: bool = False
    users: int = 0
    last_used: float = 0.0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    attaching: asyncio.Lock = field(default_factory=asyncio.Lock)
    attached: dict[str, int] = field(default_factory=dict)  # adapter digest -> bytes
    tenants: dict[str, Tenant] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> Ready | None:
        done = self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None
        return self.loading.result() if done else None

    def welcomes(self, wanted: dict[str, Any]) -> bool:
        return self.ending is None and not self.leaving and self.suits(wanted)

    def suits(self, wanted: dict[str, Any]) -> bool:
        """Whether the base, as it was loaded, can serve a request for these Load fields."""
        if wanted.get("n_ctx", 0) > self.process.load.n_ctx:
            return False
        return all(getattr(self.process.load, key) == wanted[key] for key in RELOADING if key in wanted)

    def merged(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The fields of a Load that serves `wanted` and, where possible, whoever this one suited."""
        n_ctx = max(self.process.load.n_ctx, wanted.get("n_ctx", 0))
        return {**self.fields, **wanted, "n_ctx": n_ctx}

    def enter(self, model: Model, keep_alive: float, now: float) -> Tenant:
        """Count one more user; the latest request's `keep_alive` is the name's."""
        tenant = self.tenants.setdefault(model.name, Tenant(model, keep_alive))
        tenant.model, tenant.keep_alive = model, keep_alive
        tenant.users += 1
        self.users += 1
        self.last_used = now
        self.idle.clear()
        return tenant

    def leave(self, tenant: Tenant, now: float) -> None:
        tenant.users -= 1
        tenant.expires = _after(now, tenant.keep_alive)
        self.users -= 1
        self.last_used = now
        if not self.users:
            self.idle.set()

    def expire(self, now: float) -> None:
        """Forget the names whose time is up."""
        for name in [name for name, t in self.tenants.items() if not t.users and t.expires <= now]:
            del self.tenants[name]

    def next_expiry(self) -> float:
        """Loop time; infinite when nothing is due before somebody leaves."""
        return min((tenant.expires for tenant in self.tenants.values() if not tenant.users), default=math.inf)


def next_to_go(residents: Iterable[Resident]) -> Resident:
    """Who makes room: the one unused for longest; if all are used, the one that was taken up longest ago."""
    return min(residents, key=lambda r: (r.users > 0, r.last_used))


class Deaths:
    """The crash loop breaker: a base whose runner keeps dying is not started over and over."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}
        self._words: dict[str, str] = {}

    def record(self, base: str, now: float, last_words: str) -> None:
        self._times.setdefault(base, deque(maxlen=MAX_DEATHS)).append(now)
        self._words[base] = last_words

    def check(self, base: str, now: float, model: str) -> None:
        """Raises `RunnerDied` while the loop is broken."""
        times = self._times.get(base, deque())
        if len(times) < MAX_DEATHS or now - times[0] > WINDOW:
            return
        raise RunnerDied(
            f"the runner of {model} stopped {MAX_DEATHS} times within {WINDOW:g} s, the last time with "
            f"{self._words[base]}",
            hint=f"it is not started again for {times[0] + WINDOW - now:.0f} s; `modelctl logs` says more",
        )


def _after(now: float, keep_alive: float) -> float:
    return math.inf if keep_alive < 0 else now + keep_alive
