from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from modelctl.runner.threads import LATEST, LATEST_BACK, Threads


def run(threads: Threads, seconds: float, cost: Callable[[int], float], start: float = 0.0) -> list[int]:
    """Steps with a fake clock; returns the count of each step."""
    now, counts = start, []
    while now < start + seconds:
        counts.append(threads.n)
        took = cost(threads.n)
        now += took
        threads.record(8, took, now)
    return counts


def idle(n: int) -> float:
    return {1: 0.026, 2: 0.015, 3: 0.012, 4: 0.010}[n]


def busy(n: int) -> float:
    return {1: 0.027, 2: 0.050, 3: 0.060, 4: 0.080}[n]


def test_on_an_idle_machine_all_threads_stay() -> None:
    counts = run(Threads(2), 60, idle)
    assert counts.count(2) > 0.97 * len(counts)


def test_a_busy_core_costs_a_thread_at_once_and_an_idle_one_brings_it_back() -> None:
    threads = Threads(2)
    run(threads, 10, idle)
    counts = run(threads, 5, busy, start=10)
    assert counts[-20:].count(1) >= 18, "but for a try"
    assert counts.index(1) < 40
    counts = run(threads, 2 * LATEST, idle, start=15)
    assert threads.n == 2
    assert counts.count(2) > len(counts) / 2


def test_a_slow_step_now_and_then_does_not_keep_a_thread_away() -> None:
    threads = Threads(2)
    run(threads, 10, busy)
    assert threads.reduced
    steps = count()
    counts = run(threads, 2 * LATEST_BACK, lambda n: 0.015 if n == 2 and next(steps) % 3 else 0.027, start=10)
    assert counts[-100:].count(2) > 90


@pytest.mark.parametrize("start", [1.2, 1.7, 2.5])
def test_a_moment_in_which_the_machine_stands_still_costs_no_thread(start: float) -> None:
    """After it whatever is tried looks fast."""
    threads = Threads(2)
    run(threads, start, idle)
    run(threads, 0.2, lambda n: 0.2, start=start)
    counts = run(threads, 5, idle, start=start + 0.2)
    assert not threads.reduced
    assert counts.count(2) > 0.9 * len(counts)


def test_tries_of_more_threads_cost_little_beside_a_busy_core() -> None:
    threads = Threads(2)
    run(threads, 20, busy)
    counts = run(threads, 120, busy, start=20)
    lost = counts.count(2) * (busy(2) - busy(1))
    assert lost < 0.03 * 120


@pytest.mark.parametrize("n_max", [3, 4])
def test_more_threads_walk_to_the_best_count(n_max: int) -> None:
    threads = Threads(n_max)
    assert run(threads, 21, busy)[-100:].count(1) > 90
    assert threads.n == 1
    counts = run(threads, 200, idle, start=21)
    assert counts[-100:].count(n_max) > 90


def test_a_fixed_count_stays() -> None:
    assert set(run(Threads(2, fixed=True), 10, busy)) == {2}


def test_another_batch_shape_is_not_taken_for_a_slowdown() -> None:
    threads = Threads(2)
    now, tried = 0.0, 0
    for i in range(400):
        rows = 1 + (i // 2) % 8
        took = 0.005 * rows
        now += took
        threads.record(rows, took, now)
        tried += threads.n == 1
    assert tried == 0


def test_tries_get_rarer_though_crowds_come_and_go() -> None:
    threads = Threads(2)
    now, tries, before = 0.0, 0, 2
    for crowd in range(30):
        for rows in [1] * 20 + [8] * 100 + [7, 6, 5 if crowd % 2 else 4, 3]:
            took = (0.010 if rows == 1 else 0.040) * (1 if threads.n == 2 else 1.8)
            now += took
            before, n = threads.n, threads.record(rows, took, now)
            tries += n < before
        now += 5
        assert crowd < 25 or tries <= 12, "five minutes with a try every 30 s, and a few before"


def test_fewer_threads_than_allowed_are_told() -> None:
    threads = Threads(2)
    assert not threads.reduced
    now = 0.0
    for _ in range(300):
        now += 0.1
        threads.record("shape", 0.1 if threads.n == 1 else 0.2, now)
    assert threads.reduced
