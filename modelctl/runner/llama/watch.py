"""A context's callback, taken out and put back.

llama.cpp takes a callback when it makes a context. It has no call to change it later, nor one that hands out the ggml
scheduler which calls it; but asking about each node of each graph costs a few percent. So the word of the context that
holds the callback is found by its value, and the scheduler among what the context's words point at.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from contextlib import suppress

_N_WORDS = 128  # of a llama_context, in which its own parameters are looked for
_N_POINTERS, _N_SCHEDULER = 256, 192  # words in which its scheduler is, and in which that one's callback is
_NO_FLAGS = ~0x1F_0000_0101  # a scheduler begins with two flags and the number of its backends, which is small


class Watch:
    """Switched off at first."""

    def __init__(self, context: int, callback: int, set_callback: Callable[[int, int | None, None], None]) -> None:
        """Addresses: of a llama_context, of the callback it was made with. `set_callback(scheduler, callback)` is
        ggml_backend_sched_set_eval_callback."""
        self._context = context
        self._callback = callback
        self._set_callback = set_callback
        self._word = self._find_word()
        self._scheduler: int | None = None  # its address; 0: it could not be found
        self._place: int | None = None  # of the callback in a scheduler, once one was found: in words
        self._has_scheduler = False
        self.switch(False)

    @property
    def works(self) -> bool:
        return self._word is not None

    def switch(self, on: bool) -> None:
        """Whether the callback is called for new graphs, from the next change of adapters on: then llama.cpp looks."""
        if self._word is not None:
            self._word.value = self._callback if on else 0

    def ask(self, on: bool) -> None:
        """Whether it is called for a graph that is used again, too."""
        if self._scheduler is None and self._has_scheduler:
            self._scheduler = self._find_scheduler()
        if self._scheduler:
            self._set_callback(self._scheduler, self._callback if on else None, None)

    def adapters_changed(self) -> None:
        """The next decode makes a new scheduler."""
        self._has_scheduler, self._scheduler = False, None

    def decoded(self) -> None:
        self._has_scheduler = True

    def _find_word(self) -> ctypes.c_uint64 | None:
        words = (ctypes.c_uint64 * _N_WORDS).from_address(self._context)
        found = [i for i, word in enumerate(words) if word == self._callback]
        return ctypes.c_uint64.from_address(self._context + 8 * found[0]) if len(found) == 1 else None

    def _find_scheduler(self) -> int:
        """While it holds the callback. Read through a file, since not all words of the context are addresses."""
        found: dict[int, int] = {}
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        for address in set((ctypes.c_uint64 * _N_POINTERS).from_address(self._context)):
            with suppress(OSError, OverflowError, struct.error):  # no address, or the end of what it is one of
                words = struct.unpack(f"<{_N_SCHEDULER}Q", os.pread(memory, 8 * _N_SCHEDULER, address))
                places = [i for i, word in enumerate(words) if word == self._callback]
                if words[0] & _NO_FLAGS == 0 and words[0] >> 32 and self._is_known(places):
                    found[address] = places[0] if self._place is None else self._place
        os.close(memory)
        if len(found) != 1:
            return 0
        ((address, self._place),) = found.items()
        return address

    def _is_known(self, places: list[int]) -> bool:
        """Behind a scheduler may lie what is left of an earlier one: at first the callback must be there once, later in
        its place."""
        return len(places) == 1 if self._place is None else self._place in places
