"""Masks what joined adapters add, token by token, while llama.cpp computes.

llama.cpp asks the callback about every node of a graph before it computes it. What an adapter adds to a product W x is
four nodes: A x, B A x, that times a scale, and the sum with W x. A joined adapter is followed by a spare one of zeros,
which makes four more. These eight are changed into

    A x,  A x times a mask,  B times that,  that times factors,  nothing,  nothing,  nothing,  the sum with W x

once for each graph. A graph is used for many steps, and another crowd of the same size is other numbers in the same
mask and the same factors.

The mask is 1 where the rows of A are those of the token's own adapter, 0 elsewhere. The factors are the scale of the
token's mix, as far as B does not hold it already; where it does for all tokens, there is nothing to multiply. Each of
these is exact, so the bits are those of a batch that runs under one mix.

What no token of a batch asks for need not be computed: instead of A and B, the products get views of them, from the
first adapter in use to the last.

A is recognised by its address: weights stay where they are as long as they are loaded, so one look into a table
decides. About three thousand questions a graph, at a third of a microsecond; none for a graph that is used again,
unless other rows are in use, or there are factors for the first time.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import struct
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modelctl.runner.joined import A, B, Joined, Layout, rank_axis
from modelctl.runner.sequence import Scales

# struct ggml_tensor on 64-bit machines: type, buffer, ne[4], nb[4], op, op_params[16], flags, src[10], view_src,
# view_offs, data, name[64], extra
_NE, _STRIDES, _OP, _PARAMS, _SOURCE, _DATA, _NAME, _SIZE = 16, 48, 80, 84, 152, 248, 256, 336
_N_SHAPE, _N_PARAMS, _N_SOURCES = 64, 64, 80  # bytes of ne and nb, op_params, src
_int32 = ctypes.c_int32.from_address
_int64 = ctypes.c_int64.from_address
_pointer = ctypes.c_uint64.from_address
_UNSCALED = struct.pack("<2f", 1.0, 0.0)  # op_params of a scale node that changes nothing: scale, bias
_F32 = 0  # GGML_TYPE_F32
_N_NODES = 8  # of a joined adapter and its spare at one product

Mask = npt.NDArray[np.float32]
Both = tuple[Mask, Mask]  # for all rows of a batch, and for its outputs: the last layer drops the other rows


class Unexpected(Exception):
    """llama.cpp's graph is not what it is taken for; nothing was changed in it."""


class View:
    """Of a weight: the rows that a batch needs, which its product takes instead."""

    def __init__(self, tensor: int, axis: int) -> None:
        """`tensor`: its address. `axis`: which counts its rows."""
        self._view = ctypes.create_string_buffer(ctypes.string_at(tensor, _SIZE), _SIZE)
        self.address = ctypes.addressof(self._view)
        self._axis = axis
        self._data = _pointer(tensor + _DATA).value
        self._stride = _int64(tensor + _STRIDES + 8 * axis).value

    def cut(self, start: int, stop: int) -> None:
        _int64(self.address + _NE + 8 * self._axis).value = stop - start
        _pointer(self.address + _DATA).value = self._data + start * self._stride


class Weights:
    """A and B of a joined adapter for one of the base's tensors, views of them, and A and B of its spare."""

    def __init__(self, addresses: Sequence[int], name: str, layout: Layout, factor: float) -> None:
        """`addresses`: of the four, in this order. `factor`: what B was multiplied by."""
        self.a, self.b, self.spare_a, self.spare_b = addresses
        self.layout, self.factor = layout, factor
        self.view_a, self.view_b = View(self.a, rank_axis(name, A)), View(self.b, rank_axis(name, B))

    def cut(self, start: int, stop: int) -> None:
        self.view_a.cut(start, stop)
        self.view_b.cut(start, stop)


class Masker:
    """`learn` once after joined adapters are loaded, `prepare` before each decode; `callback` does the rest."""

    def __init__(self, n_rows: int, op_number: Callable[[str], int]) -> None:
        """`n_rows`: of the largest batch. `op_number`: of a ggml operation, by its name."""
        self._n_rows = n_rows
        self._none, self._add, self._mul, self._scale = map(op_number, ("NONE", "ADD", "MUL", "SCALE"))
        self._joined: Sequence[Joined] = ()
        self._weights: list[Weights] = []
        self._at: dict[int, Weights] = {}  # by the addresses of A and of its view
        self._masks: dict[Layout, Both] = {}  # [n_rows, rank] each
        self._factors: dict[tuple[Layout, float], Both] = {}  # [n, 1] each; none where all are 1
        self._spread: dict[tuple[Layout, float, int, bool], Mask] = {}  # the same for n_out columns: [n_rows, n_out]
        self._tensors: dict[object, Any] = {}  # masks and factors as llama.cpp sees them
        self._windows: dict[Layout, tuple[int, int]] = {}  # the rows that products are computed of
        self._is_stale = False  # what graphs were changed into is not what is needed now
        self._rows: tuple[Scales, ...] = ()
        self._outputs: tuple[Scales, ...] = ()
        self._nodes: list[int] = []  # of one product, until all are there
        self._sources: list[int] | None = None  # of all nodes, while addresses are learned
        self._learned: list[dict[str, int]] = []  # of each adapter in turn, its tensors' addresses
        self._failure = ""

    def callback(self, node: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback."""
        try:
            if self._nodes:
                self._nodes.append(node)
                if len(self._nodes) == _N_NODES:
                    self._change(self._nodes)
                    self._nodes = []
            elif self._sources is not None:
                self._sources.append(_pointer(node + _SOURCE).value)
            elif _pointer(node + _SOURCE).value in self._at:
                self._nodes = [node]
        except Exception as error:  # ctypes would print it, and llama.cpp go on with what is not masked
            self._failure, self._nodes = f"masking failed: {error}", []
        return not ask

    def _change(self, nodes: Sequence[int]) -> None:
        weights = self._at[_source(nodes[0])]
        if _source(nodes[0]) == weights.a:
            self._check(nodes, weights)
            self._convert(nodes, weights)
        self._fit(nodes, weights)
        self._is_stale = False

    def _check(self, nodes: Sequence[int], weights: Weights) -> None:
        """That these are the nodes of a joined adapter and its spare, and share memory as is taken for granted."""
        delta, product, scale, total, zero, zeros, scaled, last = nodes
        ends = (
            *map(_source, (product, scale, zero, zeros, scaled, last)),
            *map(_second, (product, total, zeros, last)),
        )
        known = (weights.b, product, weights.spare_a, weights.spare_b, zeros, total, delta, scale, zero, scaled)
        ops = [_int32(node + _OP).value for node in (scale, total, last)]
        unscaled = ctypes.string_at(scale + _PARAMS, len(_UNSCALED)) == _UNSCALED
        in_place = _data(scale) == _data(product) and _data(last) == _data(_source(total))
        if ends != known or ops != [self._scale, self._add, self._add] or not (unscaled and in_place):
            raise Unexpected("llama.cpp adds adapters in another way than expected")

    def _convert(self, nodes: Sequence[int], weights: Weights) -> None:
        delta, product, scale, total, *spare, last = nodes
        for part, size in ((_OP, 4), (_PARAMS, _N_PARAMS), (_SOURCE, _N_SOURCES)):
            ctypes.memmove(scale + part, product + part, size)
        _pointer(delta + _SOURCE).value = weights.view_a.address
        _pointer(scale + _SOURCE).value, _pointer(scale + _SOURCE + 8).value = weights.view_b.address, product
        _pointer(last + _SOURCE).value = _source(total)
        for node, first in ((product, delta), (total, scale)):
            ctypes.memset(node + _PARAMS, 0, _N_PARAMS)
            ctypes.memset(node + _SOURCE, 0, _N_SOURCES)
            _int32(node + _OP).value = self._mul
            _pointer(node + _SOURCE).value = first
            _pointer(node + _DATA).value = _data(first)
        for node in spare:
            _int32(node + _OP).value = self._none

    def _fit(self, nodes: Sequence[int], weights: Weights) -> None:
        """To what is in use now."""
        delta, product, scale, total, *_, last = nodes
        layout = weights.layout
        n_tokens = _int64(delta + _NE + 8 * (1 + layout.is_expert)).value
        if n_tokens not in (len(self._rows), len(self._outputs)):
            self._failure = f"masking failed: a result of {n_tokens} tokens in a batch of {len(self._rows)}"
        start, stop = self._windows[layout]
        shape = (stop - start, *(_int64(delta + _NE + 8 * i).value for i in (1, 2, 3)))
        for node in (delta, product):  # in memory that has room for all rows
            struct.pack_into("<8q", (ctypes.c_char * _N_SHAPE).from_address(node + _NE), 0, *shape, *_strides(shape))
        _pointer(product + _SOURCE + 8).value = self._mask(layout, n_tokens, start, stop)
        multiplied = (layout, weights.factor) in self._factors
        _int32(total + _OP).value = self._mul if multiplied else self._none
        _pointer(last + _SOURCE + 8).value = total if multiplied else scale
        if multiplied:
            _pointer(total + _SOURCE + 8).value = self._factor(weights, n_tokens, _int64(scale + _NE).value)

    def _mask(self, layout: Layout, n_tokens: int, start: int, stop: int) -> int:
        """Some mask there must be, whatever is wrong: products whose shapes differ end the process."""
        mask = self._masks[layout][self._are_outputs(n_tokens)]
        return self._tensor(layout, mask, n_tokens, start, stop, layout.is_expert)

    def _factor(self, weights: Weights, n_tokens: int, n_out: int) -> int:
        layout, are_outputs = weights.layout, self._are_outputs(n_tokens)
        key = (layout, weights.factor, n_out, are_outputs)
        if key not in self._spread:
            self._spread[key] = np.empty((self._n_rows, n_out), np.float32)  # costs what is written of it
            self._spread_out(key)
        return self._tensor(key, self._spread[key], n_tokens, 0, n_out, layout.is_expert)

    def _spread_out(self, key: tuple[Layout, float, int, bool]) -> None:
        layout, factor, _, are_outputs = key
        if (layout, factor) in self._factors:
            column = self._factors[layout, factor][are_outputs]
            self._spread[key][: len(column)] = column

    def _are_outputs(self, n_tokens: int) -> bool:
        return n_tokens != len(self._rows)

    def _tensor(self, key: object, data: Mask, n_tokens: int, start: int, stop: int, is_expert: bool) -> int:
        """Columns `start` to `stop` of the first `n_tokens` rows, as llama.cpp sees them: [columns, n_tokens], or
        [columns, 1, n_tokens] where a token has several experts."""
        tensor = self._tensors.get((key, n_tokens))
        if tensor is None:
            tensor = self._tensors[key, n_tokens] = ctypes.create_string_buffer(_SIZE)
            ctypes.memmove(tensor, next(iter(self._at)), _NE)  # for the buffer that ggml looks for
            _int32(ctypes.addressof(tensor)).value = _F32
        shape = (stop - start, 1, n_tokens, 1) if is_expert else (stop - start, n_tokens, 1, 1)
        struct.pack_into("<8q", tensor, _NE, *shape, *_strides((data.shape[1], *shape[1:])))
        _pointer(ctypes.addressof(tensor) + _DATA).value = data.ctypes.data + 4 * start
        return ctypes.addressof(tensor)

    def use(self, joined: Sequence[Joined]) -> None:
        """Other adapters are attached: every address may mean something else now."""
        self._joined = joined
        for known in (self._weights, self._at, self._masks, self._factors, self._spread, self._tensors, self._windows):
            known.clear()
        self._learned.clear()
        self._rows = self._outputs = ()

    def learn(self, decode: Callable[[], None]) -> bool:
        """Find the weights of the next adapter in a decode under it alone: of each joined one, then of its spare.
        False: not all were seen."""
        named = ((ctypes.string_at(at + _NAME).decode(errors="replace"), at) for at in self._all_sources(decode) if at)
        found = {name: at for name, at in named if name.endswith((A, B))}
        self._learned.append(found)
        joined = self._joined[(len(self._learned) - 1) // 2]
        if found.keys() != {name + suffix for name in joined.layouts for suffix in (A, B)}:
            return False
        if len(self._learned) % 2 == 0:
            of_joined, of_spare = self._learned[-2:]
            for name, layout in joined.layouts.items():
                four = [found[name + suffix] for found in (of_joined, of_spare) for suffix in (A, B)]
                weights = Weights(four, name, layout, joined.factor)
                self._weights.append(weights)
                self._at[weights.a] = self._at[weights.view_a.address] = weights
                if layout not in self._masks:
                    empty = np.zeros((2, self._n_rows, layout.rank), np.float32)
                    self._masks[layout] = (empty[0], empty[1])
        return True

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
        self._failure, self._nodes = "", []
        outputs = rows if all(wanted) else tuple(itertools.compress(rows, wanted))
        if rows == self._rows and outputs == self._outputs:
            return
        self._rows, self._outputs = rows, outputs
        for layout, masks in self._masks.items():
            for mask, chosen in zip(masks, (rows, outputs), strict=True):
                mask[: len(chosen)] = owners_of(layout, chosen)
        self._cut({digest for scales in rows for digest, _ in scales})
        self._multiply()

    def _multiply(self) -> None:
        """By what is not 1 for some row; where a graph does already, it goes on, until it is to be changed anyway."""
        before, self._factors = self._factors.keys(), {}
        for layout, factor in {(weights.layout, weights.factor) for weights in self._weights}:
            both = factors_of(layout, self._rows, factor), factors_of(layout, self._outputs, factor)
            is_used = (layout, factor) in before and not self._is_stale
            if is_used or any((one != 1).any() for one in both):
                self._factors[layout, factor] = both
        self._is_stale = self._is_stale or self._factors.keys() != before
        for key in self._spread:
            self._spread_out(key)

    def _cut(self, digests: Container[str]) -> None:
        """Compute of what is joined the part in which these adapters are."""
        windows = {layout: layout.window(digests) for layout in self._masks}
        if windows != self._windows:
            self._windows, self._is_stale = windows, True
            for weights in self._weights:
                weights.cut(*windows[weights.layout])

    @property
    def problem(self) -> str:
        """Why what was computed since `prepare` cannot be trusted; "" where it can."""
        return self._failure or ("masking failed: a product has too few nodes" if self._nodes else "")

    @property
    def asks(self) -> bool:
        """Whether the next decode has to call back also when it uses its graph again."""
        return self._is_stale


def owners_of(layout: Layout, rows: Sequence[Scales]) -> Mask:
    """[n_tokens, rank]: 1 where the row of A is of an adapter in the token's mix."""
    mask = np.zeros((len(rows), layout.rank), np.float32)
    for i, scales in enumerate(rows):
        digests = {digest for digest, _ in scales}
        for part in layout.parts:
            mask[i, part.start : part.stop] = part.digest in digests
    return mask


def factors_of(layout: Layout, rows: Sequence[Scales], factor: float) -> Mask:
    """[n_tokens, 1]: what B A x is still to be multiplied by, when `factor` is in B."""
    mask = np.ones((len(rows), 1), np.float32)
    parts = {part.digest: part for part in layout.parts}
    for i, scales in enumerate(rows):
        for digest, scale in scales:
            if digest in parts:
                mask[i] = parts[digest].factor(scale) / np.float32(factor)
    return mask


def _source(node: int) -> int:
    return _pointer(node + _SOURCE).value


def _second(node: int) -> int:
    """Its second source."""
    return _pointer(node + _SOURCE + 8).value


def _data(node: int) -> int:
    return _pointer(node + _DATA).value


def _strides(shape: Sequence[int]) -> list[int]:
    """Bytes, of floats side by side."""
    return [4 * math.prod(shape[:i]) for i in range(len(shape))]
