"""Masks what joined adapters add, token by token, while llama.cpp computes.

llama.cpp calls back about the nodes of a graph before it computes them. What an adapter adds to a product W x is four:
A x, B A x, that times a scale, and the sum with W x. llama.cpp does not know of joined adapters: attached for each are
two carriers, adapters of rank 1 and zeros. Their eight nodes are changed into

    A x,  A x times a mask,  B times that,  that times factors,  nothing,  nothing,  nothing,  the sum with W x

with A and B of the joined adapter, or into nothing where it has none. The mask is 1 where the rows of A are those of
the token's own adapter, 0 elsewhere. The factors are the scale of the token's mix, as far as B does not hold it
already; where it does for all tokens, there is nothing to multiply. Each of these is exact, so the bits are those of a
batch that runs under one mix. All this is done once for each graph. A graph is used for many steps, and another crowd
of the same size is other numbers in the same mask and the same factors.

What no token asks for need not be computed: the products get views of A and B (window.py), and a batch of tokens of
the base alone none. In a batch of several prompts each may get its own, by products that are batches of products.

A carrier's A is recognised by its address: weights stay where they are as long as they are loaded. The tensors of a
graph lie one behind another, so all of it is read and changed at its first node, as an array.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from modelctl.runner.joined import EMBEDDING, A, B, Joined, Layout, private_memory, rank_axis
from modelctl.runner.llama.tensors import (
    F32,
    STRIDE,
    TENSOR,
    Ints,
    Tensors,
    addresses,
    copies,
    field,
    name_of,
    reshape,
    tensors_from,
)
from modelctl.runner.sequence import Scales
from modelctl.runner.window import Window, window_of

_N_NODES = 8  # of two carriers at one product
_UNSCALED = np.array([1.0, 0.0], np.float32).view(np.int32)  # params of a scale node that changes nothing: scale, bias

T = TypeVar("T", bound=Hashable)
Mask = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Both = tuple[Mask, Mask]  # for all rows of a batch, and for its outputs: the last layer drops the other rows


class Unexpected(Exception):
    """llama.cpp's graph is not what it is taken for; nothing was changed in it."""


class Places:
    """Where joined adapters can be added, index by index: for each of the base's tensors that a carrier changes, as
    often as there are pairs of carriers."""

    def __init__(self, found: Mapping[str, Sequence[int]]) -> None:
        """`found`: a weight's name -> its addresses in all carriers, in the order in which they are added."""
        names = [name.removesuffix(A) for name in found if name.endswith(A)]
        n_pairs = len(next(iter(found.values()))) // 2
        self.tensors = [(name, pair) for name in names for pair in range(n_pairs)]
        pairs = [(found[name + A][2 * i :], found[name + B][2 * i :]) for name, i in self.tensors]
        self.at = np.array([(a[0], b[0], a[1], b[1]) for a, b in pairs])  # [n, 4]: A and B of the first, of the second
        self.carriers = copies(self.at[:, :2])
        self.views = copies(self.at[:, [0, 1, 0]])  # [n, 3]: what products take as A, as B, as x
        self.ops = np.zeros((len(self.at), 2), np.int32)  # A x and B x: a product, one by expert, or a look-up
        self.axes = np.array([[rank_axis(name, suffix) for suffix in (A, B)] for name, _ in self.tensors])
        self.is_expert = self.carriers["ne"][:, 0, 2] > 1
        self.can_block = ~self.is_expert & [name != EMBEDDING for name, _ in self.tensors]  # plain products
        self.view_a, self.view_b, self.view_x = addresses(self.views).T
        self._index = {at: i for i, pair in enumerate(zip(self.at[:, 0], self.view_a, strict=True)) for at in pair}
        self._sorted = np.sort(list(self._index))

    def of(self, sources: Ints) -> tuple[Ints, Ints]:
        """Which of these addresses are of a carrier's first A or of what is in its place, and in which place."""
        nearest = np.searchsorted(self._sorted, sources).clip(max=len(self._sorted) - 1)
        found = np.flatnonzero(self._sorted[nearest] == sources)
        return found, np.array([self._index[at] for at in sources[found].tolist()], np.int64)

    def cut(self, which: Ints, whole: Tensors, windows: Ints, n_tokens: Ints) -> None:
        """Views of the rows of A and B, [n, 2], in these windows, [n, 4] as in `Window`; and of as many tokens of x."""
        start, width, n_blocks, step = windows.T
        each, blocks = np.arange(len(which)), np.flatnonzero(self.can_block[which])
        for j in range(2):
            axis, view = self.axes[which, j], whole[:, j].copy()
            ne, nb = view["ne"], view["nb"]
            stride = nb[each, axis]
            ne[each, axis] = width
            ne[blocks, 2], nb[blocks, 2] = n_blocks[blocks], (step * stride)[blocks]
            view["data"] += start * stride
            self.views[which, j] = view
        x, size = self.views[which[blocks], 2], (n_tokens // n_blocks)[blocks]
        x["ne"][:, 1], x["ne"][:, 2] = size, n_blocks[blocks]
        x["nb"][:, 2] = x["nb"][:, 1] * size
        self.views[which[blocks], 2] = x


class Weights:
    """What is in each place."""

    def __init__(self, places: Places, joined: Sequence[Joined], n_rows: int) -> None:
        given = [joined[i] if i < len(joined) and name in joined[i].layouts else None for name, i in places.tensors]
        self.is_used = np.array([one is not None for one in given])
        self.whole = places.carriers.copy()  # [n, 2]: A and B
        first = next(layout for one in joined for layout in one.layouts.values())
        kinds: list[tuple[Layout, bool]] = []
        products: list[tuple[Layout, float, int]] = []
        for i, ((name, _), one) in enumerate(zip(places.tensors, given, strict=True)):
            for j, matrix in enumerate(one.matrices[name] if one else ()):
                for key, value in zip(("type", "ne", "nb", "data"), matrix, strict=True):
                    self.whole[key][i, j] = value
            layout = one.layouts[name] if one else first
            kinds.append((layout, bool(places.can_block[i])))
            products.append((layout, one.factor if one else 1.0, int(self.whole["ne"][i, 1, 1])))
        self.kinds, self.kind = _numbered(kinds)
        self.products, self.product = _numbered(products)  # factor: what B was multiplied by; and its outputs
        rank = max(layout.rank for layout, _ in self.kinds)
        self.masks = _floats((len(self.kinds), 2, n_rows * rank))
        self.windows = np.zeros((len(self.kinds), 2, 4), np.int64)
        self.mask_tensors = self._tensors((len(self.kinds), 2))
        self.factors = [_floats((2, n_rows, n_out)) for _, _, n_out in self.products]  # for all rows, for outputs
        self.factor_tensors = self._tensors((len(self.products), 2))
        self.is_multiplied = np.zeros(len(self.products), bool)
        self.scratch = np.empty(0, np.float32)  # of A x, from one node to the next
        self._joined = joined  # their memory

    def _tensors(self, shape: tuple[int, ...]) -> Tensors:
        """Without data, where llama.cpp takes weights to be."""
        tensors = np.zeros(shape, TENSOR)
        tensors["type"], tensors["buffer"] = F32, self.whole["buffer"][0, 0]
        return tensors


class Masker:
    """`learn` once after carriers are attached, `use` when other adapters are joined, `prepare` before each decode;
    `callback` does the rest."""

    def __init__(self, n_rows: int, op_number: Callable[[str], int]) -> None:
        """`n_rows`: of the largest batch. `op_number`: of a ggml operation, by its name."""
        self._n_rows = n_rows
        self._none, self._add, self._mul, self._scale = map(op_number, ("NONE", "ADD", "MUL", "SCALE"))
        self._sources: list[int] | None = None  # of all nodes, while addresses are learned
        self.forget()

    def forget(self) -> None:
        """Carriers are attached or detached: every address may mean something else now."""
        self._places: Places | None = None
        self._weights: Weights | None = None
        self._before: Weights | None = None  # what a graph may have been changed into, until it is changed again
        self._rows: tuple[Scales, ...] = ()
        self._outputs: tuple[Scales, ...] = ()
        self._seen = (0, 0)  # from where to where a graph has been changed
        self._is_stale = False  # what graphs were changed into is not what is needed now
        self._failure = ""

    def learn(self, names: Iterable[str], n_carriers: int, decode: Callable[[], None]) -> bool:
        """Find the carriers' weights in a decode under all of them. `names`: of the base's tensors that each changes.
        False: not all were seen."""
        found: dict[str, dict[int, None]] = {name + suffix: {} for name in names for suffix in (A, B)}
        self._sources = []
        decode()
        for at in filter(None, self._sources):
            if (name := name_of(at)) in found:
                found[name][at] = None
        self._sources = None
        if not found or any(len(seen) != n_carriers for seen in found.values()):
            return False
        self._places = Places({name: list(seen) for name, seen in found.items()})
        return True

    def use(self, joined: Sequence[Joined]) -> None:
        """These are added from now on, at most one for each pair of carriers, in this order."""
        assert self._places is not None
        self._before, self._weights = self._weights, Weights(self._places, joined, self._n_rows)
        self._rows = self._outputs = ()
        self._is_stale = True

    def leave(self) -> None:
        """No graph of before is computed again."""
        self._before = None

    def callback(self, node: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback."""
        try:
            if self._sources is not None:
                self._sources.append(field(node, "source"))
            elif not self._seen[0] <= node < self._seen[1]:
                self._change(node)
        except Exception as error:  # ctypes would print it, and llama.cpp go on with what is not masked
            self._failure, self._seen = f"masking failed: {error}", (0, 1 << 64)
        return not ask

    def _change(self, first: int) -> None:
        """The graph whose nodes lie from this one on."""
        graph = tensors_from(first)
        self._seen = (first, first + len(graph) * STRIDE)
        places, weights = self._places, self._weights
        if places is None or weights is None:
            return
        starts, which = places.of(graph["source"][:, 0])
        if not len(starts):
            return
        if starts[-1] + _N_NODES > len(graph):
            raise Unexpected("a product has too few nodes")
        rows = starts[:, None] + np.arange(_N_NODES)
        nodes, at = graph[rows], first + rows * STRIDE
        new = np.flatnonzero(nodes["source"][:, 0, 0] == places.at[which, 0])
        if len(new):
            nodes[new] = self._converted(nodes[new], at[new], places, which[new])
        nodes["op"][:, [0, 1, 2, 3, 7]] = self._none
        self._fit(nodes, at, places, weights, which)
        graph[rows] = nodes
        self._is_stale, self._before = False, None

    def _converted(self, nodes: Tensors, at: Ints, places: Places, which: Ints) -> Tensors:
        """[n, 8], after a look whether they are two carriers' nodes, and share memory as is taken for granted. What
        will be computed is left to `_fit`."""
        op, params, source, data = (nodes[name] for name in ("op", "params", "source", "data"))
        _, b, second_a, second_b = places.at[which].T
        delta, product, scale, total, zero, zeros, scaled, _ = at.T
        known = [b, delta, product, scale, second_a, second_b, zero, zeros, total, scaled]
        ends = source[:, [1, 1, 2, 3, 4, 5, 5, 6, 7, 7], [0, 1, 0, 1, 0, 0, 1, 0, 0, 1]]
        base = [field(tensor, "data") for tensor in source[:, 3, 0].tolist()]
        if not (
            (ends == np.stack(known, axis=1)).all()
            and (op[:, [2, 3, 7]] == [self._scale, self._add, self._add]).all()
            and (params[:, 2, :2] == _UNSCALED).all()
            and (data[:, 2] == data[:, 1]).all()
            and (data[:, 7] == base).all()
        ):
            raise Unexpected("llama.cpp adds adapters in another way than expected")
        places.ops[which] = op[:, :2]
        blocks = np.flatnonzero(places.can_block[which])
        places.views[which[blocks], 2] = copies(source[blocks, 0, 1])
        params[:, 2], source[:, 2] = params[:, 1], source[:, 1]
        source[:, 7, 0] = source[:, 3, 0]
        op[:, 4:7] = self._none
        params[:, [1, 3]], source[:, [1, 3]] = 0, 0
        source[:, 0, 0], source[:, 2, 0] = places.view_a[which], places.view_b[which]
        source[blocks, 0, 1] = places.view_x[which[blocks]]
        source[:, 1, 0], source[:, 2, 1], source[:, 3, 0] = delta, product, scaled
        data[:, 3] = data[:, 6] = data[:, 2]
        return nodes

    def _fit(self, all_nodes: Tensors, at: Ints, places: Places, weights: Weights, which: Ints) -> None:
        """Make those that somebody needs now compute what is in use. `scaled`, node 6, is nothing any more, and has the
        shape of the sum."""
        n_tokens, dropped = self._tokens(all_nodes[:, 6], places.is_expert[which])
        windows = weights.windows[weights.kind[which], dropped]
        needed = np.flatnonzero(weights.is_used[which] & (windows[:, 1] > 0))
        if not len(needed):
            return
        at, which, n_tokens, dropped, windows = (each[needed] for each in (at, which, n_tokens, dropped, windows))
        nodes = all_nodes[needed]
        op, source = nodes["op"], nodes["source"]
        places.cut(which, weights.whole[which], windows, n_tokens)
        self._reshape(nodes, weights, windows, n_tokens, places.can_block[which])
        multiplied = weights.is_multiplied[weights.product[which]]
        op[:, [0, 2]] = places.ops[which]
        op[:, 1], op[:, 7] = self._mul, self._add
        op[:, 3] = np.where(multiplied, self._mul, self._none)
        source[:, 1, 1] = addresses(weights.mask_tensors)[weights.kind[which], dropped]
        source[:, 3, 1] = addresses(weights.factor_tensors)[weights.product[which], dropped]
        source[:, 7, 1] = np.where(multiplied, at[:, 3], at[:, 6])
        all_nodes[needed] = nodes

    def _tokens(self, results: Tensors, is_expert: Bools) -> tuple[Ints, Ints]:
        """How many each of these is of, and whether (1 or 0) they are those with outputs only."""
        n_tokens = results["ne"][np.arange(len(results)), 1 + is_expert]
        dropped = (n_tokens != len(self._rows)).astype(int)
        if (n_tokens != np.array([len(self._rows), len(self._outputs)])[dropped]).any():
            raise Unexpected(f"a result of {n_tokens.min()} tokens in a batch of {len(self._rows)}")
        return n_tokens, dropped

    def _reshape(self, nodes: Tensors, weights: Weights, windows: Ints, n_tokens: Ints, can_block: Bools) -> None:
        """Shapes and memory of A x, masked or not, and of B's results, which are as wide as the sum."""
        delta, product, scale, _, _, _, scaled, _ = (nodes[:, i] for i in range(_N_NODES))
        _, width, n_blocks, _ = windows.T
        blocks = np.flatnonzero(can_block)
        shape = delta["ne"].copy()
        shape[:, 0] = width
        shape[blocks, 1], shape[blocks, 2] = (n_tokens // n_blocks)[blocks], n_blocks[blocks]
        reshape(delta, shape)
        reshape(product, shape)
        delta["data"] = product["data"] = self._scratch(weights, int(shape.prod(axis=1).max()))
        shape[:, 0] = scaled["ne"][:, 0]
        reshape(scale, shape)

    def _scratch(self, weights: Weights, n: int) -> int:
        """The address of `n` floats, the same for all nodes of a graph."""
        if len(weights.scratch) < n:
            weights.scratch = np.empty(n, np.float32)
        return weights.scratch.ctypes.data

    def prepare(self, rows: tuple[Scales, ...], wanted: Sequence[int]) -> None:
        """`rows[i]`: the mix of batch row i; `wanted[i]`: whether its logits are asked for."""
        self._failure, self._seen = "", (0, 0)
        outputs = rows if all(wanted) else tuple(itertools.compress(rows, wanted))
        if (weights := self._weights) is None or (rows == self._rows and outputs == self._outputs):
            return
        self._rows, self._outputs = rows, outputs
        before = weights.windows.copy()
        for i, (layout, can_block) in enumerate(weights.kinds):
            for j, chosen in enumerate((rows, outputs)):
                window = window_of(layout, chosen, can_block=can_block)
                weights.windows[i, j] = astuple(window)
                data = mask_of(layout, chosen, window)
                weights.masks[i, j, : data.size] = data.ravel()
                shape = _shape(layout, len(chosen), window.width, window.n_blocks)
                _set(weights.mask_tensors[i, j], weights.masks[i, j], shape)
        self._is_stale = self._is_stale or not np.array_equal(weights.windows, before)
        self._multiply(weights)

    def _multiply(self, weights: Weights) -> None:
        """By what is not 1 for some row; where a graph does already, it goes on, until it is to be changed anyway."""
        before = weights.is_multiplied.copy()
        known: dict[tuple[Layout, float], Both] = {}
        for i, (layout, factor, n_out) in enumerate(weights.products):
            if (layout, factor) not in known:
                known[layout, factor] = (
                    factors_of(layout, self._rows, factor),
                    factors_of(layout, self._outputs, factor),
                )
            both = known[layout, factor]
            is_used = before[i] and not self._is_stale
            weights.is_multiplied[i] = is_used or any((one != 1).any() for one in both)
            for j, column in enumerate(both) if weights.is_multiplied[i] else ():
                weights.factors[i][j, : len(column)] = column
                _set(weights.factor_tensors[i, j], weights.factors[i][j], _shape(layout, len(column), n_out))
        self._is_stale = self._is_stale or not np.array_equal(weights.is_multiplied, before)

    @property
    def problem(self) -> str:
        """Why what was computed since `prepare` cannot be trusted; "" where it can."""
        return self._failure or ("masking failed: llama.cpp did not call back" if self._is_stale else "")

    @property
    def asks(self) -> bool:
        """Whether the next decode has to call back also when it uses its graph again."""
        return self._is_stale


def mask_of(layout: Layout, rows: Sequence[Scales], window: Window) -> Mask:
    """[n_tokens, width]: 1 where a row of A is of an adapter in the token's mix. The rows are those in the window."""
    own: dict[Scales, Mask] = {}
    for scales in rows:
        if scales not in own:
            digests = {digest for digest, _ in scales}
            own[scales] = np.concatenate([np.full(p.stop - p.start, p.digest in digests) for p in layout.parts])
    size = max(1, len(rows) // window.n_blocks)
    starts = window.starts
    cut = [own[scales][(start := starts[i // size]) : start + window.width] for i, scales in enumerate(rows)]
    return np.array(cut, np.float32).reshape(len(rows), window.width)


def factors_of(layout: Layout, rows: Sequence[Scales], factor: float) -> Mask:
    """[n_tokens, 1]: what B A x is still to be multiplied by, when `factor` is in B."""
    mask = np.ones((len(rows), 1), np.float32)
    parts = {part.digest: part for part in layout.parts}
    for i, scales in enumerate(rows):
        for digest, scale in scales:
            if digest in parts:
                mask[i] = parts[digest].factor(scale) / np.float32(factor)
    return mask


def _shape(layout: Layout, n_tokens: int, n: int, n_blocks: int = 1) -> tuple[int, int, int, int]:
    """As llama.cpp sees [n_tokens, n]; where a token has several experts, it is for all of them."""
    return (n, 1, n_tokens, 1) if layout.is_expert else (n, n_tokens // n_blocks, n_blocks, 1)


def _floats(shape: tuple[int, ...]) -> Mask:
    return np.frombuffer(private_memory(4 * prod(shape)), np.float32).reshape(shape)


def _set(tensor: np.void, data: Mask, shape: Sequence[int]) -> None:
    tensor["data"] = data.ctypes.data
    reshape(tensor, np.array(shape))


def _numbered(things: Sequence[T]) -> tuple[list[T], Ints]:
    """Those that differ, and which of them each is."""
    numbers: dict[T, int] = {}
    of_each = [numbers.setdefault(thing, len(numbers)) for thing in things]
    return list(numbers), np.array(of_each)
