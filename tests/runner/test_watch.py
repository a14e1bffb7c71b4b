"""What looks like llama.cpp's memory is made here, so that it can be what it rarely is."""

from __future__ import annotations

import ctypes
from typing import Any

from modelctl.runner.llama.watch import Watch

CALLBACK = 0x7F00_1234_5670
Words = Any  # a ctypes array


def scheduler(*places: int) -> Words:
    """One whose memory, and what lies behind it, has the callback in these places."""
    words = (ctypes.c_uint64 * 192)()
    words[0] = 1 << 32  # of one backend
    for place in places:
        words[place] = CALLBACK
    return words


def watched(words: Words) -> tuple[Words, Watch, list[tuple[int, int | None, None]]]:
    """A context with a scheduler, its watch, and what that tells the scheduler."""
    context = (ctypes.c_uint64 * 256)()
    context[5], context[200] = CALLBACK, ctypes.addressof(words)
    told: list[tuple[int, int | None, None]] = []
    watch = Watch(ctypes.addressof(context), CALLBACK, lambda *call: told.append(call))
    watch.decoded()
    return context, watch, told


def test_the_word_that_holds_the_callback_is_switched() -> None:
    context, watch, _ = watched(scheduler(20))
    assert watch.works
    assert context[5] == 0
    watch.switch(True)
    assert context[5] == CALLBACK


def test_a_scheduler_is_told_once_it_is_found() -> None:
    words = scheduler(20)
    _, watch, told = watched(words)
    watch.ask(False)
    watch.ask(True)
    assert told == [(ctypes.addressof(words), None, None), (ctypes.addressof(words), CALLBACK, None)]


def test_the_rest_of_an_earlier_scheduler_is_not_taken_for_a_part_of_the_next() -> None:
    first, second = scheduler(20), scheduler(20, 90)
    context, watch, told = watched(first)
    watch.ask(False)
    watch.adapters_changed()
    context[200] = ctypes.addressof(second)
    watch.decoded()
    watch.ask(False)
    assert told[1:] == [(ctypes.addressof(second), None, None)]


def test_where_it_is_not_sure_nothing_is_told() -> None:
    _, watch, told = watched(scheduler(20, 90))
    watch.ask(False)
    two = scheduler(20), scheduler(20)
    context, other, _ = watched(two[0])
    context[201] = ctypes.addressof(two[1])
    other.ask(False)
    assert told == []
