"""Masks what joined adapters add, token by token, while llama.cpp computes.

llama.cpp calls back about the nodes of a graph before it computes them. What an adapter adds to a product W x is four:
A x, B A x, that times a scale, and the sum with W x. A joined adapter is followed by a spare one of zeros, which makes
four more. These eight are changed into

    A x,  A x times a mask,  B times that,  that times factors,  nothing,  nothing,  nothing,  the sum with W x

once for each graph. A graph is used for many steps, and another crowd of the same size is other numbers in the same
mask and the same factors.

The mask is 1 where the rows of A are those of the token's own adapter, 0 elsewhere. The factors are the scale of the
token's mix, as far as B does not hold it already; where it does for all tokens, there is nothing to multiply. Each of
these is exact, so the bits are those of a batch that runs under one mix.

What no token asks for need not be computed: instead of A and B, the products get views of them (window.py). In a batch
of several prompts each may get its own, by products that are batches of products.

A is recognised by its address: weights stay where they are as long as they are loaded. The tensors of a graph lie one
behind another in memory, so all of it is read and changed at its first node, as an array.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import astuple

import numpy as np
import numpy.typing as npt

from modelctl.runner.joined import EMBEDDING, A, B, Joined, Layout, rank_axis
from modelctl.runner.sequence import Scales
from modelctl.runner.window import Window, window_of

# struct ggml_tensor on 64-bit machines, and with it the struct ggml_object that leads to the next
_TENSOR = np.dtype("i4, i4, i8, 4i8, 4i8, i4, 16i4, i4, 10i8, 2i8, i8, V64, 2i8")
_TENSOR.names = (
    "type",
    "pad",
    "buffer",
    "ne",
    "nb",
    "op",
    "params",
    "flags",
    "source",
    "view",
    "data",
    "name",
    "extra",
)
_OBJECT = np.dtype([("place", "i8", 2), ("next", "i8"), ("kind", "i8"), ("tensor", _TENSOR)])
_HEAD = _OBJECT.fields["tensor"][1]  # type: ignore[index]
_SOURCE, _DATA, _NAME = (_TENSOR.fields[name][1] for name in ("source", "data", "name"))  # type: ignore[index]
_N_READ = 1024  # objects at a time
_N_NODES = 8  # of a joined adapter and its spare at one product
_F32 = 0  # GGML_TYPE_F32
_UNSCALED = np.array([1.0, 0.0], np.float32).view(np.int32)  # params of a scale node that changes nothing: scale, bias
_pointer = ctypes.c_uint64.from_address

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.float32]
Both = tuple[Mask, Mask]  # for all rows of a batch, and for its outputs: the last layer drops the other rows
Tensors = npt.NDArray[np.void]  # of _TENSOR


class Unexpected(Exception):
    """llama.cpp's graph is not what it is taken for; nothing was changed in it."""


class Weights:
    """The joined adapters' weights, index by index: one for each of the base's tensors that one of them changes."""

    def __init__(self, found: Sequence[tuple[str, Joined, Sequence[int]]]) -> None:
        """`found`: a tensor's name, the joined adapter, and the addresses of its A and B, and of its spare's."""
        layouts = [joined.layouts[name] for name, joined, _ in found]
        self.at = np.array([addresses for _, _, addresses in found], np.int64)  # [n, 4]
        self.is_expert = np.array([layout.is_expert for layout in layouts])
        self.can_block = ~self.is_expert & [name != EMBEDDING for name, _, _ in found]  # plain products
        self.kinds = list(dict.fromkeys(zip(layouts, self.can_block.tolist(), strict=True)))
        self.kind = _indices(self.kinds, zip(layouts, self.can_block.tolist(), strict=True))
        self._whole = _copies(self.at[:, :2].ravel()).reshape(-1, 2)
        self.views = np.concatenate([self._whole, self._whole[:, :1]], axis=1)  # [n, 3]: of A, of B, of x
        self._axes = np.array([[rank_axis(name, suffix) for suffix in (A, B)] for name, _, _ in found])
        n_outs = self._whole["ne"][:, 1, 1].tolist()
        factors = [joined.factor for _, joined, _ in found]  # what B was multiplied by
        self.products = list(dict.fromkeys(zip(layouts, factors, n_outs, strict=True)))
        self.product = _indices(self.products, zip(layouts, factors, n_outs, strict=True))
        self.index = {at: i for i, pair in enumerate(zip(self.at[:, 0], self.address(0), strict=True)) for at in pair}
        self._sorted = np.sort(list(self.index))

    def address(self, view: int) -> Ints:
        """[n], of the views of A (0), of B (1), of x (2)."""
        return _addresses(self.views)[:, view]

    def uses(self, sources: Ints) -> Ints:
        """Which of these addresses are of an A, or of its view."""
        nearest = np.searchsorted(self._sorted, sources).clip(max=len(self._sorted) - 1)
        return np.flatnonzero(self._sorted[nearest] == sources)

    def like(self, shape: tuple[int, ...]) -> Tensors:
        """Tensors of floats, without data, where llama.cpp takes these weights to be."""
        tensors = np.zeros(shape, _TENSOR)
        tensors["type"], tensors["buffer"] = _F32, self._whole["buffer"][0, 0]
        return tensors

    def cut(self, which: Ints, windows: Ints) -> None:
        """Views of the rows in these windows, [len(which), 4] as in `Window`."""
        start, width, n_blocks, step = windows.T
        for j in range(2):
            axis, whole = self._axes[which, j], self._whole[which, j]
            each = np.arange(len(which))
            stride = whole["nb"][each, axis]
            ne, nb = whole["ne"], whole["nb"]
            ne[each, axis] = width
            blocks = np.flatnonzero(self.can_block[which])
            ne[blocks, 2], nb[blocks, 2] = n_blocks[blocks], (step * stride)[blocks]
            whole["data"] += start * stride
            self.views[which, j] = whole


class Masker:
    """`learn` once after joined adapters are loaded, `prepare` before each decode; `callback` does the rest."""

    def __init__(self, n_rows: int, op_number: Callable[[str], int]) -> None:
        """`n_rows`: of the largest batch. `op_number`: of a ggml operation, by its name."""
        self._n_rows = n_rows
        self._none, self._add, self._mul, self._scale = map(op_number, ("NONE", "ADD", "MUL", "SCALE"))
        self._sources: list[int] | None = None  # of all nodes, while addresses are learned
        self.use(())

    def use(self, joined: Sequence[Joined]) -> None:
        """Other adapters are attached: every address may mean something else now."""
        self._joined = joined
        self._learned: list[dict[str, int]] = []  # of each adapter in turn, its tensors' addresses
        self._weights: Weights | None = None
        self._rows: tuple[Scales, ...] = ()
        self._outputs: tuple[Scales, ...] = ()
        self._seen = (0, 0)  # from where to where a graph has been changed
        self._is_stale = False  # what graphs were changed into is not what is needed now
        self._failure = ""

    def callback(self, node: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback."""
        try:
            if self._sources is not None:
                self._sources.append(_pointer(node + _SOURCE).value)
            elif not self._seen[0] <= node < self._seen[1]:
                self._change(node)
        except Exception as error:  # ctypes would print it, and llama.cpp go on with what is not masked
            self._failure, self._seen = f"masking failed: {error}", (0, 1 << 64)
        return not ask

    def _change(self, first: int) -> None:
        """The graph whose nodes lie from this one on."""
        graph = _tensors_from(first)
        self._seen = (first, first + len(graph) * _OBJECT.itemsize)
        weights = self._weights
        if weights is None:
            return
        starts = weights.uses(graph["source"][:, 0])
        if not len(starts):
            return
        if starts[-1] + _N_NODES > len(graph):
            raise Unexpected("a product has too few nodes")
        places = starts[:, None] + np.arange(_N_NODES)
        nodes, at = graph[places], first + places * _OBJECT.itemsize
        which = np.array([weights.index[source] for source in nodes["source"][:, 0, 0].tolist()])
        new = np.flatnonzero(nodes["source"][:, 0, 0] == weights.at[which, 0])
        if len(new):
            nodes[new] = self._converted(nodes[new], at[new], weights, which[new])
        self._fit(nodes, at, weights, which)
        graph[places] = nodes
        self._is_stale = False

    def _converted(self, nodes: Tensors, at: Ints, weights: Weights, which: Ints) -> Tensors:
        """[n, 8], after a look whether they are the nodes of joined adapters and their spares, and share memory as is
        taken for granted."""
        op, params, source, data = (nodes[name] for name in ("op", "params", "source", "data"))
        _, b, spare_a, spare_b = weights.at[which].T
        delta, product, scale, total, zero, zeros, scaled, _ = at.T
        known = [b, delta, product, scale, spare_a, spare_b, zero, zeros, total, scaled]
        ends = source[:, [1, 1, 2, 3, 4, 5, 5, 6, 7, 7], [0, 1, 0, 1, 0, 0, 1, 0, 0, 1]]
        base = [_pointer(address + _DATA).value for address in source[:, 3, 0].tolist()]
        if not (
            (ends == np.stack(known, axis=1)).all()
            and (op[:, [2, 3, 7]] == [self._scale, self._add, self._add]).all()
            and (params[:, 2, :2] == _UNSCALED).all()
            and (data[:, 2] == data[:, 1]).all()
            and (data[:, 7] == base).all()
        ):
            raise Unexpected("llama.cpp adds adapters in another way than expected")
        blocks = np.flatnonzero(weights.can_block[which])
        weights.views[which[blocks], 2] = _copies(source[blocks, 0, 1])
        op[:, 2], params[:, 2], source[:, 2] = op[:, 1], params[:, 1], source[:, 1]
        source[:, 7, 0] = source[:, 3, 0]
        op[:, [1, 3]], op[:, 4:7] = self._mul, self._none
        params[:, [1, 3]], source[:, [1, 3]] = 0, 0
        source[:, 0, 0], source[:, 2, 0] = weights.address(0)[which], weights.address(1)[which]
        source[blocks, 0, 1] = weights.address(2)[which[blocks]]
        source[:, 1, 0], source[:, 2, 1], source[:, 3, 0] = delta, product, scaled
        data[:, 1] = data[:, 0]
        data[:, 3] = data[:, 6] = data[:, 2]
        return nodes

    def _fit(self, nodes: Tensors, at: Ints, weights: Weights, which: Ints) -> None:
        """To what is in use now. `scaled`, which is nothing any more, has the shape of the sum and B's results."""
        op, source = nodes["op"], nodes["source"]
        delta, product, scale, _, _, _, scaled, _ = (nodes[:, i] for i in range(_N_NODES))
        each = np.arange(len(nodes))
        n_tokens = scaled["ne"][each, 1 + weights.is_expert[which]]
        dropped = (n_tokens != len(self._rows)).astype(int)
        if (n_tokens != np.array([len(self._rows), len(self._outputs)])[dropped]).any():
            raise Unexpected(f"a result of {n_tokens.min()} tokens in a batch of {len(self._rows)}")
        windows = self._windows[weights.kind[which], dropped]
        weights.cut(which, windows)
        _, width, n_blocks, _ = windows.T
        blocks = np.flatnonzero(weights.can_block[which])
        shape = delta["ne"].copy()
        shape[:, 0] = width
        size = n_tokens // n_blocks
        shape[blocks, 1], shape[blocks, 2] = size[blocks], n_blocks[blocks]
        for tensor in (delta, product):  # in memory that has room for all rows
            _reshape(tensor, shape)
        shape[:, 0] = scaled["ne"][:, 0]
        _reshape(scale, shape)
        x = weights.views[which[blocks], 2]
        x["ne"][:, 1:3] = shape[blocks, 1:3]
        x["nb"][:, 2] = x["nb"][:, 1] * size[blocks]
        weights.views[which[blocks], 2] = x
        multiplied = self._is_multiplied[weights.product[which]]
        op[:, 3] = np.where(multiplied, self._mul, self._none)
        source[:, 1, 1] = _addresses(self._mask_tensors)[weights.kind[which], dropped]
        source[:, 3, 1] = _addresses(self._factor_tensors)[weights.product[which], dropped]
        source[:, 7, 1] = np.where(multiplied, at[:, 3], at[:, 6])

    def learn(self, decode: Callable[[], None]) -> bool:
        """Find the weights of the next adapter in a decode under it alone: of each joined one, then of its spare.
        False: not all were seen."""
        named = ((ctypes.string_at(at + _NAME).decode(errors="replace"), at) for at in self._all_sources(decode) if at)
        found = {name: at for name, at in named if name.endswith((A, B))}
        self._learned.append(found)
        joined = self._joined[(len(self._learned) - 1) // 2]
        if found.keys() != {name + suffix for name in joined.layouts for suffix in (A, B)}:
            return False
        if len(self._learned) == 2 * len(self._joined):
            self._weights = weights = Weights(list(self._all_found()))
            rank = max(layout.rank for layout, _ in weights.kinds)
            self._masks = np.zeros((len(weights.kinds), 2, self._n_rows * rank), np.float32)
            self._windows = np.zeros((len(weights.kinds), 2, 4), np.int64)
            self._mask_tensors = weights.like((len(weights.kinds), 2))
            self._factors: dict[tuple[int, int], Mask] = {}  # by product, and whether for outputs: [n_rows, n_out]
            self._factor_tensors = weights.like((len(weights.products), 2))
            self._is_multiplied = np.zeros(len(weights.products), bool)
        return True

    def _all_found(self) -> Iterator[tuple[str, Joined, list[int]]]:
        for joined, of_joined, of_spare in zip(self._joined, self._learned[::2], self._learned[1::2], strict=True):
            for name in joined.layouts:
                yield name, joined, [found[name + suffix] for found in (of_joined, of_spare) for suffix in (A, B)]

    def in_order(self, decode: Callable[[], None]) -> bool:
        """Whether a decode under all adds them to each of the base's tensors in their order."""
        names = {at: (name, i) for i, found in enumerate(self._learned) for name, at in found.items()}
        orders: dict[str, list[int]] = {}
        for at in self._all_sources(decode):
            if at in names:
                orders.setdefault(names[at][0], []).append(names[at][1])
        return bool(orders) and all(order == sorted(order) for order in orders.values())

    def _all_sources(self, decode: Callable[[], None]) -> list[int]:
        """Of all nodes of a decode the first source, in their order."""
        seen: list[int] = []
        self._sources = seen
        decode()
        self._sources = None
        return seen

    def prepare(self, rows: tuple[Scales, ...], wanted: Sequence[int]) -> None:
        """`rows[i]`: the mix of batch row i; `wanted[i]`: whether its logits are asked for."""
        self._failure, self._seen = "", (0, 0)
        outputs = rows if all(wanted) else tuple(itertools.compress(rows, wanted))
        if self._weights is None or (rows == self._rows and outputs == self._outputs):
            return
        self._rows, self._outputs = rows, outputs
        before = self._windows.copy()
        for i, (layout, can_block) in enumerate(self._weights.kinds):
            for j, chosen in enumerate((rows, outputs)):
                window = window_of(layout, chosen, can_block=can_block)
                self._windows[i, j] = astuple(window)
                data = mask_of(layout, chosen, window)
                self._masks[i, j, : data.size] = data.ravel()
                _set(
                    self._mask_tensors[i, j],
                    self._masks[i, j],
                    _shape(layout, len(chosen), window.width, window.n_blocks),
                )
        self._is_stale = self._is_stale or not np.array_equal(self._windows, before)
        self._multiply(self._weights)

    def _multiply(self, weights: Weights) -> None:
        """By what is not 1 for some row; where a graph does already, it goes on, until it is to be changed anyway."""
        before = self._is_multiplied.copy()
        known: dict[tuple[Layout, float], Both] = {}
        for i, (layout, factor, n_out) in enumerate(weights.products):
            if (layout, factor) not in known:
                known[layout, factor] = (
                    factors_of(layout, self._rows, factor),
                    factors_of(layout, self._outputs, factor),
                )
            both = known[layout, factor]
            is_used = before[i] and not self._is_stale
            self._is_multiplied[i] = is_used or any((one != 1).any() for one in both)
            for j, column in enumerate(both) if self._is_multiplied[i] else ():
                if (i, j) not in self._factors:
                    self._factors[i, j] = np.empty((self._n_rows, n_out), np.float32)  # costs what is written of it
                self._factors[i, j][: len(column)] = column
                _set(self._factor_tensors[i, j], self._factors[i, j], _shape(layout, len(column), n_out))
        self._is_stale = self._is_stale or not np.array_equal(self._is_multiplied, before)

    @property
    def problem(self) -> str:
        """Why what was computed since `prepare` cannot be trusted; "" where it can."""
        return self._failure

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
    starts = [window.start + i // size * window.step for i in range(len(rows))]
    cut = [own[scales][start : start + window.width] for scales, start in zip(rows, starts, strict=True)]
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


def _set(tensor: np.void, data: Mask, shape: Sequence[int]) -> None:
    tensor["data"] = data.ctypes.data
    _reshape(tensor, np.array(shape))


def _reshape(tensors: Tensors | np.void, shape: Ints) -> None:
    """To floats side by side, in `shape`, [..., 4]."""
    tensors["ne"] = shape
    tensors["nb"][..., 0] = 4
    tensors["nb"][..., 1:] = 4 * np.cumprod(shape, axis=-1)[..., :-1]


def _copies(addresses: Ints) -> Tensors:
    return np.frombuffer(b"".join(ctypes.string_at(at, _TENSOR.itemsize) for at in addresses.tolist()), _TENSOR)


def _addresses(tensors: Tensors) -> Ints:
    """Of each, in the same shape."""
    return tensors.ctypes.data + _TENSOR.itemsize * np.arange(tensors.size).reshape(tensors.shape)


def _indices(known: Sequence[Hashable], things: Iterable[Hashable]) -> Ints:
    places = {thing: i for i, thing in enumerate(known)}
    return np.array([places[thing] for thing in things])


def _tensors_from(first: int) -> Tensors:
    """In place: the tensor at this address and those that were made after it, as far as they lie side by side. Looked
    at through a file first, since the end of their memory is not known."""
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        n, at, follow = 0, first - _HEAD, True
        while follow:
            data = os.pread(memory, _N_READ * _OBJECT.itemsize, at)
            objects = np.frombuffer(data[: len(data) // _OBJECT.itemsize * _OBJECT.itemsize], _OBJECT)
            nexts = at + _OBJECT.itemsize * np.arange(1, len(objects) + 1)
            ends = np.flatnonzero(objects["next"] != nexts)
            follow = not len(ends) and len(objects) > 0
            n += len(objects) if follow else int(ends[0]) + 1 if len(ends) else 0
            at = first - _HEAD + n * _OBJECT.itemsize
    finally:
        os.close(memory)
    objects = np.ctypeslib.as_array((ctypes.c_uint8 * (n * _OBJECT.itemsize)).from_address(first - _HEAD)).view(_OBJECT)
    tensors: Tensors = objects["tensor"]
    return tensors
