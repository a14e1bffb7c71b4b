"""Different mixes in one batch: which adapters are joined for it. When that is the faster way, costs.py says.

Adapters in use are joined into as few as can be (joined.py) and masked per token (mask.py). A mix with several adapters
needs them in several joined ones, in the order in which llama.cpp adds them, because sums of floats depend on it.
What cannot be masked to the very bits of a native batch, runs natively, in turns.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Sequence as Many
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from modelctl.errors import LoadFailed
from modelctl.runner.costs import StepTimes, are_apart, is_faster
from modelctl.runner.joined import Joined, Source, carrier, join
from modelctl.runner.llama import Base, Context
from modelctl.runner.mask import Masker
from modelctl.runner.scheduler import Plan
from modelctl.runner.sequence import Scales, Sequence

Groups = tuple[tuple[str, ...], ...]  # digests, joined group by group; groups in the order of llama.cpp's sums
MODES = ("auto", "always", "never")
MAX_GROUPS = 12  # each is two adapters for llama.cpp, and eight nodes at each product
ALONE = 0.05  # seconds with one mix only, after which it runs natively: its masks have cost a change of mode by then
LOOK = 0.5  # seconds for which a decision holds at most, while the same mixes run
KEEP = 60.0  # seconds after its last use in which an adapter stays joined, unless others need its place
REST = 5.0  # seconds for which what is joined stays, when not all in use can be
EXACT = 1e-3  # a masked logit may differ this much from a native one: it differs by 0 where masking works


def give_back() -> None:
    """To the system what is free, of which glibc keeps much where nobody tells it not to (child.py does)."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def arrange(
    orders: Iterable[Many[str]], kind: Callable[[str], Hashable], rank: Callable[[str], int], max_rank: int
) -> Groups:
    """Groups for as many mixes as fit, first come, first served. `orders`: of each mix the digests, as llama.cpp adds
    them. Adapters of one mix lie in different groups, in that order; one group holds one kind."""
    accepted: list[Many[str]] = []
    groups: Groups = ()
    for order in orders:
        digests = {d for o in (*accepted, order) for d in o}
        if sum(map(rank, digests)) > max_rank:
            continue
        candidate = _levels([*accepted, order], kind)
        if candidate is not None and len(candidate) <= MAX_GROUPS:
            accepted.append(order)
            groups = candidate
    return groups


def _levels(orders: Many[Many[str]], kind: Callable[[str], Hashable]) -> Groups | None:
    """Each adapter's level is above those of all that come before it in some mix; None: two mixes contradict."""
    level = {digest: 0 for order in orders for digest in order}
    for _ in range(len(level) + 1):
        changed = False
        for a, b in (pair for order in orders for pair in itertools.pairwise(order)):
            if level[b] <= level[a]:
                level[b], changed = level[a] + 1, True
        if not changed:
            break
    else:
        return None
    groups: dict[tuple[int, str], list[str]] = {}
    for digest in level:  # those of now side by side: what lies between those in use is computed too
        groups.setdefault((level[digest], repr(kind(digest))), []).append(digest)
    return tuple(tuple(groups[key]) for key in sorted(groups))


class Mixed:
    """The joined adapters of one context. All but the joining itself happens on the thread that decodes."""

    def __init__(
        self,
        base: Base,
        context: Context,
        masker: Masker,
        *,
        mode: str,
        max_rank: int,
        paths: Mapping[str, str],
        probe: Callable[[], None],
    ) -> None:
        """`paths`: of the attached adapters, by digest. `probe`: decode two tokens in a slot that nothing uses, with
        logits. `masker` is what `context` calls back."""
        self._base = base
        self._context = context
        self._masker = masker
        self._paths = paths
        self._probe = probe
        self.mode = mode
        self.max_rank = max_rank
        self.times = StepTimes()
        self.groups: Groups = ()
        self.on = False
        self.refused = "" if context.can_watch else "this llama.cpp does not let its callback be switched"
        self._joined: list[Joined] = []
        self._mix: Scales = ()  # the carriers
        self._shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # of what they change: see `carrier`
        self._sources: dict[str, Source] = {}
        self._tried: frozenset[Scales] = frozenset()
        self._building: Future[list[Joined]] | None = None
        self._rest_until = 0.0
        self._used: dict[Scales, float] = {}
        self._covered: dict[tuple[str, ...], bool] = {}
        self._alone_until: float | None = None  # when the mix that is alone goes native
        self._rows: Many[Scales] = ()  # that `_together` was chosen for
        self._together: frozenset[Scales] = frozenset()
        self.look_again = 0.0  # when `choose` may come to another choice
        self._is_proven = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="join")

    # which mixes may share a batch

    def choose(self, rows: Many[Scales], now: float, overhead: float) -> frozenset[Scales]:
        """The mixes that share their batches in this step, perhaps none; `rows`: the mix of each that runs."""
        if self.mode == "never" or self.refused:
            self.look_again = now + LOOK
            return frozenset()
        if rows != self._rows or now >= self.look_again or self._is_ready:
            self._rows, self.look_again = rows, now + LOOK
            self._together = self._choose(Counter(rows), now, overhead)
        return self._together

    def rest(self) -> None:
        """Nothing runs any more. Whoever comes next may be the first of a crowd."""
        self._rows, self._alone_until = (), None

    def _choose(self, counts: Mapping[Scales, int], now: float, overhead: float) -> frozenset[Scales]:
        if len(counts) > 1 or (self.on and () in counts):  # masks of the base alone cost nothing, but the way back does
            self._alone_until = None
        elif self._alone_until is None:
            self._alone_until = now + ALONE
        if self.mode == "auto" and self._alone_until is not None:
            if now >= self._alone_until:
                self.on = False
                return frozenset()
            self.look_again = self._alone_until
        if len(counts) > 1 or self.mode == "always" or self._building is not None:
            self._keep_up(counts, now)
        covered = {scales: n for scales, n in counts.items() if self.covers(scales)}
        if self.mode == "always":
            self.on = bool(covered)
        elif len(covered) > 1:
            self.on = is_faster(covered, self.times, masked=self.on, overhead=overhead, now=now)
        elif not covered or len(counts) > 1:
            self.on = False
        return frozenset(covered) if self.on else frozenset()

    def split(self, plan: Plan, now: float, change: float) -> list[Plan]:
        """A batch, or where that is faster its prompts natively, mix by mix, and the rest masked."""
        if not plan.is_masked or plan.generates or self.mode != "auto":
            return [plan]
        parts: dict[Scales | None, list[tuple[Sequence, int]]] = {}
        for sequence, n in plan.rows:
            parts.setdefault(sequence.scales if n > 1 else None, []).append((sequence, n))
        n_mixes = len(parts) - (None in parts)
        n_rows = plan.n_rows - len(parts.get(None, ()))
        if not are_apart(n_rows, n_mixes, self.times, change=change, now=now):
            return [plan]
        return [Plan(scales, tuple(rows)) for scales, rows in parts.items()]

    @property
    def is_joining(self) -> bool:
        return self._building is not None and not self._building.done()

    @property
    def _is_ready(self) -> bool:
        """Whether other joined adapters are there to be taken over."""
        return self._building is not None and self._building.done()

    def covers(self, scales: Scales) -> bool:
        """Whether what is joined now computes this mix exactly."""
        digests = tuple(digest for digest, _ in scales)
        if digests not in self._covered:
            self._covered[digests] = bool(self.groups) and self._is_in_order(digests)
        return self._covered[digests]

    def _is_in_order(self, digests: Many[str]) -> bool:
        """Whether these adapters are joined, and would be added in the order in which they are natively."""
        places = {digest: i for i, group in enumerate(self.groups) for digest in group}
        order = self._base.native_order(digests)
        at = [places.get(digest, -1) for digest in order]
        return -1 not in at and all(a < b for a, b in itertools.pairwise(at))

    @property
    def why(self) -> str:
        """One line for people: how batches run now, and why not otherwise."""
        if self.mode == "never":
            return "native: mixed batches are switched off"
        if self.refused:
            return f"native: {self.refused}"
        if self.on:
            n = sum(map(len, self.groups))
            return f"mixed: {n} adapters of rank {sum(j.rank for j in self._joined)} together in each batch"
        if len(set(self._rows)) < 2:
            return "native: one mix at a time is in use"
        return "native: the adapters are being joined" if self._building else "native: turns are faster here"

    # what is joined

    def _keep_up(self, counts: Mapping[Scales, int], now: float) -> None:
        """Join what is in use, beside the engine; take over what is ready."""
        self._used = {scales: at for scales, at in self._used.items() if now - at < KEEP} | dict.fromkeys(counts, now)
        if self._building is not None:
            if self._is_ready:
                self._finish(now)
            return
        if now < self._rest_until or (all(map(self.covers, counts)) and not self._is_half_idle()):
            return
        wanted = sorted(self._used, key=lambda s: (s not in counts, not self.covers(s), self._place(s)))
        if frozenset(wanted) != self._tried:
            self._tried = frozenset(wanted)
            orders = [self._base.native_order([d for d, _ in s]) for s in wanted if len(s) <= MAX_GROUPS]
            self._building = self._worker.submit(self._join, orders)

    def _place(self, scales: Scales) -> float:
        """Where the first of its adapters is joined. Those in use that were side by side stay so: when a crowd of them
        comes back, it would pay for what lies between them."""
        digests = {digest for digest, _ in scales}
        joined = itertools.chain(*self.groups)
        return next((i for i, digest in enumerate(joined) if digest in digests), math.inf)

    def _is_half_idle(self) -> bool:
        """Whether half of the joined rank or more was not used for a while: each token pays for all of it."""
        used = {digest for scales in self._used for digest, _ in scales}
        ranks = {digest: self._sources[digest].max_rank for group in self.groups for digest in group}
        return 2 * sum(rank for digest, rank in ranks.items() if digest in used) <= sum(ranks.values())

    def _join(self, orders: Many[Many[str]]) -> list[Joined]:
        """On the worker's thread; empty when there is nothing to gain."""
        import gguf  # noqa: F401  # carriers are written with it, and the thread that decodes should not wait for it

        for digest in {d for order in orders for d in order} - self._sources.keys():
            self._sources[digest] = Source(digest, self._paths[digest])
        known = self._sources
        groups = arrange(orders, lambda d: known[d].kind, lambda d: known[d].max_rank, self.max_rank)
        if list(map(frozenset, groups)) == list(map(frozenset, self.groups)):
            return []
        return [join([known[d] for d in group]) for group in groups]

    def _finish(self, now: float) -> None:
        building, self._building = self._building, None
        assert building is not None
        try:
            if joined := building.result():
                self._install(joined)
            if not all(map(self.covers, self._tried)):
                self._rest_until = now + REST
        except Exception as error:  # whatever it is, mixes can take turns
            self.drop()
            self.refused = str(error)
            print(f"mixed batches are off: {error}", file=sys.stderr)

    def _install(self, joined: list[Joined]) -> None:
        """Put other joined adapters in the place of those there are, or raise `LoadFailed`."""
        self._carry(joined)
        self._masker.use(joined)
        self._joined = joined
        self.groups = tuple(one.digests for one in joined)
        self._covered.clear()
        if not self._is_proven:
            self._prove()
        self.times.forget(masked=True)
        give_back()

    def _carry(self, joined: Many[Joined]) -> None:
        """Attach carriers for these, where those that are do not do: a pair for each, or for one more."""
        shapes = {name: (a.ne, b.ne) for one in joined for name, (a, b) in one.matrices.items()}
        if shapes.keys() <= self._shapes.keys() and 0 <= len(self._mix) - 2 * len(joined) <= 2:
            return
        shapes = self._shapes | shapes
        self.drop()
        file = carrier(joined[0].architecture, shapes)
        try:
            for i in range(2 * len(joined)):
                name = f"carrier:{i}"
                self._base.attach(name, file.path)
                self._mix = ((name, 1.0), *self._mix)
        finally:
            file.close()
        self._shapes = shapes
        self._context.watch(True)
        self._context.set_mix(self._mix)
        if not self._masker.learn(shapes, len(self._mix), self._probe):
            raise LoadFailed("the carriers' weights are not where they were looked for")
        self._context.set_mix(())  # the graph that was made while learning has no masks

    def _prove(self) -> None:
        """Masked logits equal native ones here and now, or nothing is masked."""
        digest = self.groups[0][0]
        plain: Scales = ((digest, 1.0),)
        odd: Scales = ((digest, 0.7),)
        batches: tuple[tuple[Scales, Scales], ...] = ((plain, ()), (odd, ()), ((), odd), ((), plain))
        masked: list[npt.NDArray[np.float32]] = []
        problems: list[str] = []
        for rows in batches:  # all masked, then all native: a change between the two rebuilds a graph
            self.enter(rows, [1, 1])
            masked.append(self._first_logits())
            problems.append(self.problem)
        self.leave()
        native: dict[Scales, npt.NDArray[np.float32]] = {}
        for scales in (plain, odd, ()):
            self._context.set_mix(scales)
            native[scales] = self._first_logits()
        differences = [np.abs(logits - native[first]).max() for logits, (first, _) in zip(masked, batches, strict=True)]
        if any(problems) or not all(difference <= EXACT for difference in differences):  # NaN is never
            raise LoadFailed("masked results differ from native ones on this machine")
        self._is_proven = True

    def _first_logits(self) -> npt.NDArray[np.float32]:
        """Of the first of two tokens."""
        self._probe()
        logits: npt.NDArray[np.float32] = self._context.logits(2)[0]
        return logits.copy()

    def drop(self) -> None:
        """Free the joined adapters and their carriers."""
        self.on = False
        self.groups = ()
        self._covered.clear()
        self.leave()
        self._context.set_mix(())
        self._masker.forget()
        for name, _ in self._mix:
            self._base.detach(name)
        self._mix, self._joined, self._shapes = (), [], {}

    # a batch

    def enter(self, rows: tuple[Scales, ...], wanted: Many[int]) -> None:
        """The next decode is masked: batch row i is of mix rows[i]."""
        self._context.watch(True)
        self._context.set_mix(self._mix)
        self._masker.prepare(rows, wanted)
        self._context.ask(self._masker.asks)

    def leave(self) -> None:
        """The next decode is native, once its mix is set."""
        self._context.watch(False)
        self._masker.leave()

    @property
    def problem(self) -> str:
        return self._masker.problem

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)
        self.drop()
