"""How long llama.cpp's threads spin at a barrier before they sleep: as the machine has room for it.

A step is hundreds of barriers. On an idle machine a thread should spin until the others have come: to sleep and be
woken takes longer than most waits. Where something else wants the cores it should sleep at once: it may be spinning on
the very core that the one it waits for needs, and a step takes seconds.

llama.cpp leaves this to OpenMP, and GNU's libgomp spins long, 300,000 times, unless it manages more threads than there
are processors; then 100 times (its manual, GOMP_SPINCOUNT). So, while the machine is busy, there is a team of threads
that do nothing but sleep.
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
INTERVAL = 0.25  # seconds between looks
BUSY = 0.2  # threads, on average, that could run but wait for a processor
IDLE = 0.1


class Spin:
    """Looks from a thread of its own: when spinning goes wrong, a step takes seconds. Nobody looks while nothing is
    decoded. Without libgomp, as on a Mac, there is nothing to do."""

    def __init__(self, parallel: Parallel | None, crowded: Callable[[], bool]) -> None:
        """`parallel`: libgomp's GOMP_parallel. `crowded`: whether the machine is known to be busy otherwise; asked for
        on that thread."""
        self._crowded = crowded
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
            before, started = seconds_waited(), time.perf_counter()
            while self._is_decoding.is_set() and not self._is_closed.wait(INTERVAL):
                after, now = seconds_waited(), time.perf_counter()
                waiting = (after - before) / (now - started)
                self._shorten(parallel, self._crowded() or waiting > (IDLE if self.is_short else BUSY))
                before, started = after, now
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


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 100)
    finally:
        os.close(file)
