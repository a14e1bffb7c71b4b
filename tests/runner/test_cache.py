from __future__ import annotations

import random

import pytest

from modelctl.runner.cache import MUCH_OLDER, PrefixCache, common_prefix
from modelctl.runner.sequence import Sequence
from tests.runner.conftest import MakeSequence


class FakeMemory:
    """What each slot holds, as (mix, token) pairs; refuses to share across mixes."""

    def __init__(self) -> None:
        self.cells: dict[int, list[tuple[object, int]]] = {}

    def cut(self, seq: int, start: int) -> bool:
        self.cells[seq] = self.cells.get(seq, [])[:start]
        return True

    def share(self, source: int, target: int, end: int) -> None:
        assert not self.cells.get(target), "shared into a slot that holds something"
        self.cells[target] = self.cells[source][:end]

    def compute(self, sequence: Sequence, n: int) -> None:
        new = sequence.tokens[sequence.n_done : sequence.n_done + n]
        self.cells.setdefault(sequence.slot, []).extend((sequence.scales, t) for t in new)
        sequence.n_done += n

    def check(self, sequence: Sequence) -> None:
        expected = [(sequence.scales, t) for t in sequence.tokens[: sequence.n_done]]
        assert self.cells.get(sequence.slot, []) == expected


def run(cache: PrefixCache, memory: FakeMemory, sequence: Sequence, running: tuple[Sequence, ...] = ()) -> int:
    cache.admit(sequence, running)
    memory.check(sequence)
    cached = sequence.n_done
    memory.compute(sequence, sequence.n_pending)
    return cached


def test_the_next_turn_goes_on_where_the_last_one_ended(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 4)
    first = make([1, 2, 3])
    assert run(cache, memory, first) == 0
    cache.retire(first, 1)
    assert run(cache, memory, make([1, 2, 3, 4, 5])) == 3
    assert cache.n_idle == 0, "the old memory became the new sequence's"


def test_another_mix_never_gets_the_memory(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 4)
    first = make([1, 2, 3], mix="a")
    run(cache, memory, first)
    cache.retire(first, 1)
    assert run(cache, memory, make([1, 2, 3, 4], mix="b")) == 0
    assert run(cache, memory, make([1, 2, 3, 4])) == 0
    assert run(cache, memory, make([1, 2, 3, 4], mix="a")) == 3


def test_one_token_is_always_left_to_decode(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 4)
    first = make([1, 2, 3])
    run(cache, memory, first)
    cache.retire(first, 1)
    again = make([1, 2, 3])
    cache.admit(again, ())
    assert (again.n_done, again.n_pending) == (2, 1)


def test_a_shared_beginning_is_forked_and_stays_for_others(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 6)
    first = make([1, 2, 3, 4])
    run(cache, memory, first)
    cache.retire(first, 1)
    assert run(cache, memory, make([1, 2, 8])) == 2
    assert run(cache, memory, make([1, 2, 9])) == 2
    assert run(cache, memory, make([1, 2, 3, 4, 5])) == 4


def test_a_running_sequence_lends_its_prefix(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 4)
    first = make([1, 2, 3, 4])
    cache.admit(first, ())
    memory.compute(first, 2)
    assert run(cache, memory, make([1, 2, 3, 9]), (first,)) == 2


def test_memory_that_cannot_be_cut_is_used_whole_or_not_at_all(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 4, can_cut=False)
    first = make([1, 2, 3])
    run(cache, memory, first)
    cache.retire(first, 1)
    assert run(cache, memory, make([1, 2, 9])) == 0
    assert run(cache, memory, make([1, 2, 3, 4])) == 3


def test_the_oldest_goes_first(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 8)
    for now, tokens in enumerate(([1, 1], [2, 2], [3, 3])):
        sequence = make(tokens)
        run(cache, memory, sequence)
        cache.retire(sequence, now)
    assert cache.evict()
    assert [run(cache, memory, make([*t, 7])) for t in ([1, 1], [2, 2], [3, 3])] == [0, 2, 2]


def test_those_that_run_are_neighbours_and_nothing_is_forgotten_for_it(make: MakeSequence) -> None:
    memory = FakeMemory()
    cache = PrefixCache(memory, 8, own_cells=True)
    past = [make([i, i, i]) for i in range(4)]
    for i, sequence in enumerate(past):
        run(cache, memory, sequence, tuple(past[:i]))
    for i, sequence in enumerate(past):
        cache.retire(sequence, i)
    assert {entry.slot for entry in cache._idle} == {0, 1, 2, 3}
    running = [make([2, 2, 2, 9])]
    assert run(cache, memory, running[0]) == 3, "it goes on in slot 2"
    for tokens in ([7, 7], [8, 8], [0, 0, 0, 9]):
        running.append(make(tokens))
        assert run(cache, memory, running[-1], tuple(running[:-1])) == (3 if tokens[0] == 0 else 0)
        slots = sorted(s.slot for s in running)
        assert slots == list(range(slots[0], slots[0] + len(slots)))
    for tokens in ([1, 1, 1, 5], [3, 3, 3, 5]):
        assert run(cache, memory, make(tokens), tuple(running)) == 3, "what lay in the way was moved"


def test_nothing_is_copied_to_keep_what_is_hardly_newer_than_the_rest(make: MakeSequence) -> None:
    for age, kept in ((MUCH_OLDER, 0), (MUCH_OLDER + 1, 2)):
        memory = FakeMemory()
        cache = PrefixCache(memory, 3, own_cells=True)
        past = [make([i, i]) for i in range(3)]
        for i, sequence in enumerate(past):
            run(cache, memory, sequence, tuple(past[:i]))
        for sequence, used in zip(past, (0, age, age), strict=True):
            cache.retire(sequence, used)
        running = make([2, 2, 9])
        assert run(cache, memory, running) == 2, "it goes on in slot 2"
        assert run(cache, memory, make([7]), (running,)) == 0, "and this takes slot 1"
        assert len(cache.idle_lengths()) == 1
        assert [len(entry.tokens) for entry in cache._idle if entry.tokens == [1, 1]] == [kept] * bool(kept)


@pytest.mark.parametrize("own_cells", [False, True])
def test_random_traffic_never_mixes_up_memory(
    make: MakeSequence, own_cells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    memory = FakeMemory()
    monkeypatch.setattr("modelctl.runner.cache.N_COPY", 4)
    cache = PrefixCache(memory, 7, own_cells=own_cells)
    running: list[Sequence] = []
    for now in range(5000):
        if len(running) < 4 and rng.random() < 0.5:
            tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 12))]
            sequence = make(tokens, mix=rng.choice(["", "a", "b"]))
            cache.admit(sequence, running)
            running.append(sequence)
        elif running:
            sequence = rng.choice(running)
            memory.compute(sequence, rng.randint(0, sequence.n_pending))
            if rng.random() < 0.3:
                running.remove(sequence)
                (cache.drop(sequence) if rng.random() < 0.2 else cache.retire(sequence, now))
        if rng.random() < 0.05:
            cache.evict()
        for sequence in running:
            memory.check(sequence)
        assert len({s.slot for s in running}) == len(running)
    assert cache.n_hits > (100 if own_cells else 500)


def test_common_prefix() -> None:
    assert [common_prefix(a, b) for a, b in (([], [1]), ([1], [1]), ([1, 2], [1, 3]), ([1, 2, 3], [1, 2]))] == [
        0,
        1,
        1,
        2,
    ]
