from __future__ import annotations

import pytest

from modelctl.runner.costs import AGE, StepTimes, are_apart, is_faster
from modelctl.runner.sequence import Scales


def test_times_are_estimated_from_the_nearest_and_go_stale() -> None:
    times = StepTimes()
    assert times.estimate(False, 2, 0.0) is None
    times.learn(False, 1, 0.010, 0.0)
    times.learn(False, 7, 0.040, 0.0)
    assert times.estimate(False, 1, 1.0) == 0.010
    assert times.estimate(False, 8, 1.0) == pytest.approx(0.045)
    assert times.estimate(True, 8, 1.0) is None
    assert times.estimate(False, 8, AGE[False] + 1) is None


def test_the_faster_way_is_taken_with_hysteresis() -> None:
    counts: dict[Scales, int] = {(("a", 1.0),): 1, (("b", 1.0),): 1}
    times = StepTimes()
    assert is_faster(counts, times, masked=False, overhead=0.1, now=0.0), "unknown: it is tried"
    times.learn(False, 1, 0.010, 0.0)
    for seconds, from_native, from_mixed in ((0.015, True, True), (0.021, False, True), (0.030, False, False)):
        times.forget(masked=True)
        times.learn(True, 2, seconds, 0.0)
        assert is_faster(counts, times, masked=False, overhead=0.1, now=0.0) == from_native
        assert is_faster(counts, times, masked=True, overhead=0.1, now=0.0) == from_mixed


def test_what_is_not_known_is_tried() -> None:
    counts: dict[Scales, int] = {(("a", 1.0),): 1, (("b", 1.0),): 1}
    times = StepTimes()
    times.learn(True, 2, 0.015, 0.0)
    assert not is_faster(counts, times, masked=True, overhead=0.1, now=0.0), "native steps were never measured"
    times.learn(False, 1, 0.010, 0.0)
    assert is_faster(counts, times, masked=True, overhead=0.1, now=0.0)
    assert is_faster(counts, times, masked=False, overhead=0.1, now=AGE[True] + 1), "masked ones were, but long ago"


def test_prompts_count_as_far_as_there_are_any() -> None:
    """Masked tokens take three quarters of the time, masked prompts three times as long."""
    counts: dict[Scales, int] = {(("a", 1.0),): 1, (("b", 1.0),): 1}
    times = StepTimes()

    def choice(n_steps: int, n_of_prompts: int) -> bool:
        for _ in range(n_steps):
            times.learn(False, 1, 0.010, 0.0)
            times.learn(True, 2, 0.015, 0.0)
        for masked, seconds in ((False, 0.001), (True, 0.003)):
            times.learn_prompt(masked, n_of_prompts, n_of_prompts * seconds, 0.0)
        return is_faster(counts, times, masked=False, overhead=0.1, now=0.0)

    assert choice(300, 10), "a short prompt now and then"
    assert not choice(300, 1000), "mostly prompts"


def test_prompts_run_apart_from_a_masked_batch_where_that_is_faster() -> None:
    times = StepTimes()
    assert not are_apart(100, 1, times, change=0.01, now=0.0), "it is tried masked"
    times.learn_prompt(True, 256, 256 * 0.003, 0.0)
    assert are_apart(100, 1, times, change=0.01, now=0.0), "and natively"
    times.learn_prompt(False, 256, 256 * 0.001, 0.0)
    assert are_apart(100, 1, times, change=0.01, now=0.0)
    assert not are_apart(10, 1, times, change=0.01, now=0.0), "two changes of adapters take longer"
    assert not are_apart(100, 16, times, change=0.01, now=0.0)
    times.forget(masked=True)
    assert not are_apart(100, 1, times, change=0.01, now=0.0), "others are joined now"
