from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep

import pytest

from modelctl.runner import spin
from modelctl.runner.engine import Engine
from modelctl.runner.frames import Load
from modelctl.runner.llama import gomp_parallel
from modelctl.runner.spin import INTERVAL, Sleepers, Spin, seconds_idle, seconds_waited

pytestmark = pytest.mark.skipif(sys.platform != "linux" or gomp_parallel() is None, reason="libgomp")
RIVAL = [sys.executable, "-c", "while True: pass"]

SPINS = """
import ctypes, os, time
from modelctl.runner.llama import gomp_parallel
from modelctl.runner.spin import Sleepers
parallel = gomp_parallel()
nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
def cpu():
    '''Milliseconds of it that a team of two takes while it waits for its next work.'''
    before = time.process_time()
    for _ in range(50):
        parallel(nothing, None, 2, 0)
        time.sleep(0.02)
    return 1000 * (time.process_time() - before)
def n_threads():
    return len(os.listdir("/proc/self/task"))
cpu()
threads = n_threads()
print("calm", cpu())
sleepers = Sleepers(parallel)
while n_threads() < threads + len(os.sched_getaffinity(0)):
    time.sleep(0.01)
print("busy", cpu())
sleepers.close()
while n_threads() > threads:
    time.sleep(0.01)
print("calm-again", cpu())
"""


def wait_for(holds: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if holds():
            return
        sleep(0.1)
    pytest.fail(f"not within a minute: {what}")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nobody waits for anybody")
def test_threads_spin_briefly_while_there_are_sleepers() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", SPINS]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout
    cpu = {name: float(ms) for name, ms in map(str.split, shown.splitlines())}
    assert cpu["calm"] > 3 * cpu["busy"] < cpu["calm-again"], cpu


def test_a_busy_machine_is_noticed_and_an_idle_one_too() -> None:
    """A thread of ours that could always run, and other programs on the one processor that it may use."""
    everywhere = os.sched_getaffinity(0)
    watch = Spin(gomp_parallel(), lambda: False)
    ended = False

    def work() -> None:
        os.sched_setaffinity(0, {min(everywhere)})  # of this thread, and of those it starts
        rivals = [subprocess.Popen(RIVAL) for _ in range(2)]
        try:
            while not watch.is_short and not ended:
                pass
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()

    watch.decoding(True)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_for(lambda: watch.is_short, "short spins beside other programs")
        worker.join()
        wait_for(lambda: not watch.is_short, "long spins again")
    finally:
        ended = True
        worker.join()
        watch.close()


def test_with_fewer_threads_spins_are_short_only_while_no_processor_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the one that was given up would look slow for ever, and never come back."""
    idles = threading.Event()
    monkeypatch.setattr(spin, "seconds_waited", lambda: 0.0)
    monkeypatch.setattr(spin, "seconds_idle", lambda: perf_counter() if idles.is_set() else 0.0)
    watch = Spin(gomp_parallel(), lambda: True)
    try:
        sleep(2 * INTERVAL)
        assert not watch.is_short, "nobody looks while nothing is decoded"
        watch.decoding(True)
        wait_for(lambda: watch.is_short, "short spins")
        idles.set()
        wait_for(lambda: not watch.is_short, "long spins again")
    finally:
        watch.close()


def test_idle_seconds_are_counted_of_all_processors_that_may_be_used() -> None:
    before = seconds_idle()
    sleep(1)
    assert 0 <= seconds_idle() - before < 1.5 * len(os.sched_getaffinity(0))


def test_where_nobody_counts_no_processor_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str, size: int = 0) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(spin, "_read", missing)
    assert seconds_idle() == 0


def test_an_engine_leaves_no_thread_behind(base: Path) -> None:
    before = set(threading.enumerate())
    engine = Engine(Load(path=str(base), n_ctx=64), lambda _: None)
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["spin"]
    engine.close()
    assert set(threading.enumerate()) <= before


def test_without_an_account_it_is_as_if_threads_waited_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "_read", lambda _: b"0 0 0")
    before = seconds_waited()
    sleep(0.1)
    assert seconds_waited() - before >= 0.1


def test_sleepers_can_end_before_they_slept() -> None:
    parallel = gomp_parallel()
    assert parallel is not None
    Sleepers(parallel).close()
