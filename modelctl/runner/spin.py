"""How long llama.cpp's threads spin at a barrier before they sleep: as the machine has room for it.

A step is hundreds of barriers. On an idle machine a thread should spin until the others have come: to sleep and be
woken takes longer than most waits. Where something else wants the cores it should sleep at once: it may be spinning on
the very core that the one it waits for needs, and a step takes seconds.

llama.cpp leaves this to OpenMP, and GNU's libgomp spins long, 300,000 times, unless it manages more threads than there
are processors; then 100 times (its manual, GOMP_SPINCOUNT). So, while the machine is busy, there is a team of threads
that do nothing but sleep.

The machine is busy when our threads wait for a processor. One that decodes with fewer threads than it could does not
wait, though something else has the other core; then it is busy as long as no core idles. It must not be called busy for
longer: without spinning more threads are slow, so a thread that was given up would never be missed.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Parallel = Callable[..., Any]  # (a C function, its argument, threads, flags)
INTERVAL = 0.5  # seconds between looks, each of which costs as much as several tokens
BUSY = 0.2  # threads, on average, that could run but wait for a processor
IDLE = 0.1
ROOM = 0.5  # processors, on average, that had nothing to do: one more thread could run


class Spin:
    """Looks from a thread of its own: when spinning goes wrong, a step takes seconds. Nobody looks while nothing is
    decoded. Without libgomp, as on a Mac, there is nothing to do."""

    def __init__(self, parallel: Parallel | None, reduced: Callable[[], bool]) -> None:
        """`parallel`: libgomp's GOMP_parallel. `reduced`: whether fewer threads decode than could; asked on that
        thread."""
        self._reduced = reduced
        self._sleepers: Sleepers | None = None
        self._is_decoding, self._is_closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        if parallel is not None:
            self._thread = threading.Thread(target=self._look, args=(parallel,), name="spin", daemon=True)
            self._thread.start()

    @property
    def is_short(self) -> bool:
        return self._sleepers is not None

    def decoding(self, on: bool) -> None:
        """To be told by the thread that decodes, before and after."""
        if on == self._is_decoding.is_set():
            return
        if on:
            self._is_decoding.set()
        else:
            self._is_decoding.clear()

    def _look(self, parallel: Parallel) -> None:
        while self._is_decoding.wait() and not self._is_closed.is_set():
            waited, idled = Rate(seconds_waited), Rate(seconds_idle)
            while self._is_decoding.is_set() and not self._is_closed.wait(INTERVAL):
                waiting = waited.lately()
                is_full = self._reduced() and idled.lately() < ROOM
                self._shorten(parallel, is_full or waiting > (IDLE if self.is_short else BUSY))
        self._shorten(parallel, False)

    def _shorten(self, parallel: Parallel, on: bool) -> None:
        if on and self._sleepers is None:
            self._sleepers = Sleepers(parallel)
        elif not on and self._sleepers is not None:
            self._sleepers.close()
            self._sleepers = None

    def close(self) -> None:
        """After the last decode."""
        self._is_closed.set()
        self._is_decoding.set()
        if self._thread is not None:
            self._thread.join()


class Rate:
    """How fast something grows, per second, from one look to the next."""

    def __init__(self, total: Callable[[], float]) -> None:
        self._total = total
        self._before = total(), time.perf_counter()

    def lately(self) -> float:
        before, started = self._before
        now, at = self._before = self._total(), time.perf_counter()
        return (now - before) / max(at - started, 1e-9)


class Sleepers:
    """An OpenMP team with a thread for each processor: with any other team, that is too many."""

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sleep, name="sleepers", daemon=True)
        self._thread.start()

    def _sleep(self) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # a function of a pointer, which is NULL here
        self._parallel(nothing, None, ctypes.c_uint(len(os.sched_getaffinity(0))), ctypes.c_uint(0))
        self._end.wait()  # libgomp keeps the team until the thread that made it ends

    def close(self) -> None:
        self._end.set()
        self._thread.join()


def seconds_waited() -> float:
    """In which threads of this process could run but waited for a processor, all in all. Where the kernel keeps no such
    account, it is as if they waited always: a short spin is the lesser evil."""
    ran = waited = 0  # nanoseconds
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208  # pathlib takes several times as long
        with suppress(OSError, ValueError):  # it has ended; or there is no account
            for_it, without_it, _ = _read(f"/proc/self/task/{task}/schedstat").split()
            ran, waited = ran + int(for_it), waited + int(without_it)
    return waited / 1e9 if ran else time.perf_counter()


def seconds_idle() -> float:
    """In which the processors that this process may use had nothing to do, all in all; 0 where nobody counts."""
    allowed = {b"cpu%d" % cpu for cpu in os.sched_getaffinity(0)}
    ticks = 0
    with suppress(OSError, ValueError):
        for line in _read("/proc/stat", 1 << 16).splitlines():
            name, *counts = line.split()
            if name in allowed:
                ticks += int(counts[3]) + int(counts[4])  # idle, and so waiting for a disk
    return ticks / os.sysconf("SC_CLK_TCK")


def _read(path: str, size: int = 100) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, size)
    finally:
        os.close(file)
