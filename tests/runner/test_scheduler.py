from __future__ import annotations

from itertools import pairwise

from modelctl.runner.scheduler import MIN_QUANTUM, PATIENCE, Scheduler
from modelctl.runner.sequence import Scales, Sequence
from tests.runner.conftest import MakeSequence


def play(scheduler: Scheduler, running: list[Sequence], seconds: float, cost: float = 0.02) -> list[Scales]:
    """Run for a while with a fake clock; returns the mix of each step."""
    steps = []
    while seconds > 0:
        plan = scheduler.plan(running)
        assert plan is not None
        steps.append(plan.scales)
        scheduler.charge(plan, cost)
        seconds -= cost
    return steps


def test_nothing_to_do(make: MakeSequence) -> None:
    assert Scheduler().plan([]) is None


def test_all_of_one_mix_share_a_batch(make: MakeSequence) -> None:
    running = [make([1] * 9, mix="a", done=8, generated=1) for _ in range(5)]
    plan = Scheduler().plan(running)
    assert plan is not None
    assert [n for _, n in plan.rows] == [1] * 5


def test_mixes_get_equal_time_whatever_their_crowd(make: MakeSequence) -> None:
    running = [make([1] * 9, mix="a", done=8, generated=1) for _ in range(7)]
    running += [make([1] * 9, mix=m, done=8, generated=1) for m in "bcd"]
    steps = play(Scheduler(), running, 60)
    counts = [steps.count(((m, 1.0),)) for m in "abcd"]
    assert max(counts) - min(counts) <= 6


def test_turns_last_a_quantum_and_no_longer(make: MakeSequence) -> None:
    running = [make([1] * 9, mix=m, done=8, generated=1) for m in "ab"]
    steps = play(Scheduler(), running, 10, cost=0.02)
    changes = sum(a != b for a, b in pairwise(steps))
    assert changes <= 10 / MIN_QUANTUM + 1
    longest = max(len(run) for run in "".join(s[0][0] for s in steps).replace("ab", "a b").replace("ba", "b a").split())
    assert longest * 0.02 <= MIN_QUANTUM + 0.02


def test_a_costly_reserve_makes_turns_longer() -> None:
    assert Scheduler(reserve_cost=0.1).quantum == 1.0


def test_a_mix_that_overran_pays_it_back(make: MakeSequence) -> None:
    scheduler = Scheduler()
    running = [make([1] * 9, mix=m, done=8, generated=1) for m in "ab"]
    plan = scheduler.plan(running)
    assert plan is not None
    scheduler.charge(plan, 5.0)
    steps = play(scheduler, running, 4.9)
    assert set(steps) == {(("b", 1.0),)}


def test_prompts_share_what_is_left_and_never_stall_those_that_generate(make: MakeSequence) -> None:
    scheduler = Scheduler(n_batch=512, n_chunk=128)
    generating = [make([1] * 9, done=8, generated=1) for _ in range(3)]
    long, short = make([1] * 2000), make([1] * 20)
    rows = dict(scheduler.rows([*generating, long, short]))
    assert [rows[s] for s in generating] == [1, 1, 1]
    assert (rows[short], rows[long]) == (20, 108)
    assert sum(n for _, n in scheduler.rows([long, make([1] * 900)])) == 512


def test_admission_prefers_the_mix_with_the_fewest_running(make: MakeSequence) -> None:
    running = [make([1], mix="a") for _ in range(3)]
    crowd = [make([1], mix="a") for _ in range(50)]
    lone = make([1], mix="b")
    assert Scheduler().admit([*crowd, lone], running, now=100) is lone
    assert Scheduler().admit(crowd, running, now=100) is crowd[0]
    assert Scheduler().admit([], running, now=100) is None


def test_new_mixes_without_end_cannot_keep_one_request_waiting_for_ever(make: MakeSequence) -> None:
    running = [make([1], mix="a") for _ in range(3)]
    unlucky = make([1], mix="a")
    fresh = [make([1], mix=f"new{i}") for i in range(5)]
    assert Scheduler().admit([unlucky, *fresh], running, now=PATIENCE // 2) is fresh[0]
    assert Scheduler().admit([unlucky, *fresh], running, now=2 * PATIENCE) is unlucky


def test_short_prompts_are_not_cut_for_a_few_rows(make: MakeSequence) -> None:
    scheduler = Scheduler(n_batch=512, n_chunk=128)
    for length in (21, 27):
        crowd = [make([1] * length) for _ in range(7)]
        assert [n for _, n in scheduler.rows([make([1] * 9, done=8, generated=1), *crowd])] == [1] + [length] * 7
    many = [make([1] * 28) for _ in range(7)]  # beyond one chunk and a half
    assert sum(n for _, n in scheduler.rows([make([1] * 9, done=8, generated=1), *many])) < 1 + 7 * 28


def test_short_prompts_leave_a_share_to_a_long_one_that_came_before(make: MakeSequence) -> None:
    scheduler = Scheduler(n_batch=512, n_chunk=128)
    generating, long = make([1] * 9, done=8, generated=1), make([1] * 2000)
    rows = dict(scheduler.rows([generating, long, *(make([1] * 32) for _ in range(6))]))
    assert rows[long] >= 128 // 7


def test_a_batch_never_has_more_rows_than_it_may(make: MakeSequence) -> None:
    scheduler = Scheduler(n_batch=64, n_chunk=48)
    for n in (1, 20, 33, 500):
        for n_generating in (0, 1, 30, 64, 70):
            running = [make([1] * 9, done=8, generated=1) for _ in range(n_generating)]
            running += [make([1] * n) for _ in range(9)]
            rows = scheduler.rows(running)
            assert 0 < sum(n for _, n in rows) <= 64 and all(n > 0 for _, n in rows)
