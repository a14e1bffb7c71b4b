"""How many threads to generate with. Pure: the clock comes in as arguments.

A step that generates is a chain of barriers: with one core busy elsewhere, two threads on two cores wait for each other
and take up to twice as long as one alone. So the count follows what is measured: now and then a few steps are tried
with one thread fewer or more, and the faster count stays; steps that are suddenly slower than those of the same shape
used to be bring a try at once. All threads are the rule. A try with fewer ends at its first slow step, and tries get
rarer; it must win twice, since now and then a machine stands still for a moment, and whatever comes after looks fast.
One with more counts as a whole, since a core that was busy a moment ago makes a slow step now and then.

Prompts take all threads always: between two barriers they compute for so long that a busy core costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from statistics import fmean

N_TRIAL = 8  # steps a try lasts, and a mean is taken over: beside a busy core, every other step may be a fast one
BETTER = 0.93  # a try with fewer threads must beat the present count by this factor
SLOWDOWN = 1.5  # this much slower than the best seen: something else wants the cores
SOONEST, USUAL, LATEST = 0.5, 2.0, 30.0  # seconds between tries
LATEST_BACK = 10.0  # with fewer threads than all


class Threads:
    def __init__(self, n_max: int, *, fixed: bool = False) -> None:
        self.n = self.n_max = max(1, n_max)
        self._fixed = fixed or self.n_max == 1
        self._shape: Hashable = None
        self._recent: deque[float] = deque(maxlen=N_TRIAL)
        self._best: dict[Hashable, float] = {}  # seconds, of each shape, with the present count
        self._trial: list[float] = []
        self._home = self.n  # the count to return to when a try loses
        self._direction = -1  # of the next try
        self._has_won = False  # the last try, with fewer threads, once
        self._interval = USUAL
        self._next = 0.0
        self._last = 0.0  # when a try ended

    @property
    def reduced(self) -> bool:
        """Whether fewer were found to be faster than all."""
        return self._home < self.n_max

    def record(self, shape: Hashable, seconds: float, now: float) -> int:
        """A step that generates took `seconds`; returns the count for the next one. Only steps of one shape compare."""
        if self._fixed:
            return self.n
        if shape != self._shape:
            self._start_over(shape, now)
        elif self.n != self._home:
            self._judge(seconds, now)
        else:
            self._watch(seconds, now)
        return self.n

    def _start_over(self, shape: Hashable, now: float) -> None:
        """The times of another shape say nothing about it."""
        self._shape, self.n = shape, self._home
        self._recent.clear()
        self._trial.clear()
        self._next = max(self._next, now + SOONEST)

    def _watch(self, seconds: float, now: float) -> None:
        self._recent.append(seconds)
        if len(self._recent) < N_TRIAL and sum(self._recent) < SOONEST:
            return
        usual = fmean(self._recent)
        if self._shape not in self._best:  # a shape that lasts, and was never tried otherwise
            self._next = min(self._next, now + USUAL)
        best = self._best[self._shape] = min(self._best.get(self._shape, usual), usual)
        slow = usual > SLOWDOWN * best and now >= self._last + SOONEST
        if now >= self._next or slow:
            self.n = self._neighbour()
            self._trial.clear()

    def _judge(self, seconds: float, now: float) -> None:
        self._trial.append(seconds)
        usual = fmean(self._recent)
        first, *others = self._trial  # the first wakes or parks threads
        if self.n > self._home:
            good = sum(others) <= N_TRIAL * usual
        else:
            good = max(others, default=0.0) < BETTER * usual and first < SLOWDOWN * usual
        if good and len(self._trial) <= N_TRIAL:
            return
        if good and self.n < self._home and not self._has_won:
            self.n, self._has_won = self._home, True
            self._recent.clear()
            self._last, self._next = now, now + SOONEST
            return
        self._has_won = False
        if good:
            self._home, self._interval = self.n, USUAL
            self._best.clear()
            self._recent.clear()
        else:
            self.n = self._home
            self._best[self._shape] = usual  # it is slow whatever the count
            self._direction = -self._direction
            self._interval = min(2 * self._interval, LATEST_BACK if self.reduced else LATEST)
        self._last, self._next = now, now + self._interval

    def _neighbour(self) -> int:
        if not 1 <= self._home + self._direction <= self.n_max:
            self._direction = -self._direction
        return self._home + self._direction
