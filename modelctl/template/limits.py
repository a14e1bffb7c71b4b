"""What a hostile template may use up: seconds, bytes, depth. A limit reached is a `TemplateLimit`, never a hang.

Two clocks watch a render. Inside `time_limit` both engines call `tick` wherever a template can loop or recurse, which
works in any thread. In the main thread a timer signal watches as well, for the time one step alone may take.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from modelctl.errors import BadRequest

MAX_OUTPUT = 8 << 20  # characters of a rendered prompt, and of any value on the way to it
MAX_SOURCE = 1 << 18  # characters of a template; the longest in use have some 20,000
WALL_FACTOR = 10  # a render may wait this often its CPU seconds: the engine's threads want the same cores
RING_AGAIN = 0.1  # seconds
_PASSAGES = (__name__, contextmanager.__module__)  # the modules whose code enters and leaves a `time_limit`


class TemplateLimit(BadRequest):
    """A template asked for more than a template may have."""


class _Deadline(threading.local):
    cpu: float | None = None  # time.thread_time() at which to stop
    seconds: float = 0.0


_deadline = _Deadline()


def tick() -> None:
    """Raise `TemplateLimit` when this thread's `time_limit` has passed."""
    if _deadline.cpu is not None and time.thread_time() > _deadline.cpu:
        _too_slow(_deadline.seconds)


def _too_slow(seconds: float) -> NoReturn:
    raise TemplateLimit(
        f"the template ran for more than {seconds:g} s", hint="it loops or recurses too much: simplify the TEMPLATE"
    )


def check_size(n: float, what: str = "the template's output") -> None:
    """Raise `TemplateLimit` when `n`, in characters, is more than a template may produce."""
    if n > MAX_OUTPUT:
        raise TemplateLimit(f"{what} is larger than {MAX_OUTPUT >> 20} MB")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Bound the renders inside to `seconds` of this thread's CPU time, and ten times that by the clock."""
    before = _deadline.cpu, _deadline.seconds
    _deadline.cpu, _deadline.seconds = time.thread_time() + seconds, seconds
    try:
        with _alarm(seconds):
            yield
    finally:
        _deadline.cpu, _deadline.seconds = before


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """The signal side of `time_limit`; signals exist only in the main thread, elsewhere `tick` is the only watch."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    cpu_end, wall_end = time.thread_time() + seconds, time.monotonic() + seconds * WALL_FACTOR
    armed = True

    def ring(_signal: int, frame: FrameType | None) -> None:
        # Raised on the way in or out of the `with`, the error would keep what follows here from being run.
        if not armed or (frame is not None and frame.f_globals["__name__"] in _PASSAGES):
            return
        if time.thread_time() >= cpu_end or time.monotonic() > wall_end:
            _too_slow(seconds)

    handler = signal.signal(signal.SIGALRM, ring)
    # It rings again and again: libraries swallow exceptions here and there, and CPU time may be short at first.
    signal.setitimer(signal.ITIMER_REAL, seconds, RING_AGAIN)
    try:
        yield
    finally:
        armed = False  # one that rang before the timer stopped may be heard in a module that is called here
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
