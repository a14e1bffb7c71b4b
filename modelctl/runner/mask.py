"""Masks what joined adapters add, token by token, while llama.cpp computes.

llama.cpp asks the callback about every node of a graph before it computes it. What an adapter adds to a product is four
nodes: A x, B A x, that times a scale, and the sum with W x. Joined adapters run at scale 1, so the third has nothing to
do, and its place is used: B A x becomes A x times a mask, and the scale becomes B times that. A graph is used for many
steps and so is changed once; another crowd of the same size is other numbers in the same mask.

The mask is 1 where the rows of A are those of the token's own adapter, 0 elsewhere. Where a token wants another scale
than B holds already, the callback stops llama.cpp after B's product and multiplies. Each of these is exact, so the bits
are those of a batch that runs under one mix.

What no token of a batch asks for need not be computed: instead of A and B, the products get views of them, from the
first adapter in use to the last.

Weights are recognised by their address: they stay where they are as long as they are loaded, so one look into a table
decides. About two thousand questions a graph, at a third of a microsecond; none for a graph that is used again, unless
there is something to multiply, or other rows are in use.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import struct
from collections.abc import Callable, Container, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from modelctl.runner.joined import EMBEDDING, A, B, Joined, Layout
from modelctl.runner.sequence import Scales

# struct ggml_tensor on 64-bit machines: type, buffer, ne[4], nb[4], op, op_params[16], flags, src[10], view_src,
# view_offs, data, name[64], extra
_NE, _STRIDES, _OP, _PARAMS, _SOURCE, _DATA, _NAME, _SIZE = 16, 48, 80, 84, 152, 248, 256, 336
_N_SHAPE, _N_PARAMS, _N_SOURCES = 64, 64, 80  # bytes of ne and nb, op_params, src
_int32 = ctypes.c_int32.from_address
_int64 = ctypes.c_int64.from_address
_pointer = ctypes.c_uint64.from_address
_UNSCALED = struct.pack("<2f", 1.0, 0.0)  # op_params of a scale node that changes nothing: scale, bias

Mask = npt.NDArray[np.float32]


class Weight:
    """A or B of a joined adapter, and a view of it: the rows that a batch needs, which products take instead."""

    def __init__(self, tensor: int, joined: int, name: str, layout: Layout, *, is_b: bool) -> None:
        """`tensor`: its address. `joined`: which of the adapters that are attached. `name`: of the base's tensor."""
        self.joined, self.name, self.layout, self.is_b = joined, name, layout, is_b
        self._view = ctypes.create_string_buffer(ctypes.string_at(tensor, _SIZE), _SIZE)
        self.view = ctypes.addressof(self._view)
        self._axis = 0 if is_b or name == EMBEDDING else 1  # that counts rows: A is [n_in, rank], B is [rank, n_out]
        self._data = _pointer(tensor + _DATA).value
        self._stride = _int64(tensor + _STRIDES + 8 * self._axis).value

    def cut(self, start: int, stop: int) -> None:
        _int64(self.view + _NE + 8 * self._axis).value = stop - start
        _pointer(self.view + _DATA).value = self._data + start * self._stride


class Masker:
    """`learn` once after joined adapters are loaded, `prepare` before each decode; `callback` does the rest."""

    def __init__(self, n_rows: int, op_number: Callable[[str], int]) -> None:
        """`n_rows`: of the largest batch. `op_number`: of a ggml operation, by its name."""
        self._n_rows = n_rows
        self._mul, self._scale = op_number("MUL"), op_number("SCALE")
        self._joined: Sequence[Joined] = ()
        self._weights: list[Weight] = []
        self._at: dict[int, Weight] = {}  # by their addresses, and by those of their views
        self._masks: dict[Layout, tuple[Mask, Mask]] = {}  # [n_rows, rank] each: for all rows, for the outputs
        self._tensors: dict[tuple[Layout, int], Any] = {}  # masks as llama.cpp sees them, by their number of tokens
        self._windows: dict[Layout, tuple[int, int]] = {}  # the rows that products are computed of
        self._is_cut_anew = False  # so the graph, if it is used again, has other shapes
        self._was_asked = False  # since then: the graph has these
        self._factors: dict[Weight, tuple[Mask, Mask]] = {}  # what B's products are still to be multiplied by
        self._rows: tuple[Scales, ...] = ()
        self._outputs: tuple[Scales, ...] = ()
        self._product = 0  # the node of B A x that was asked about last, when it is to be changed
        self._learning = -1
        self._seen: list[Weight] = []
        self._failure = ""

    def callback(self, node: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback."""
        try:
            source = _pointer(node + _SOURCE).value
            if not ask:
                self._multiply(node, self._at[source])
            elif self._learning >= 0:
                self._learn(source)
            elif (weight := self._at.get(source)) is not None:
                return self._adapt(node, weight) if source == weight.view else self._adopt(node, weight)
            elif self._product and source == self._product:
                self._product = 0
                return self._insert_mask(node, source) in self._factors
        except Exception as error:  # ctypes would print it, and llama.cpp go on with what is not masked
            self._failure = f"masking failed: {error}"
        return not ask

    def _adopt(self, node: int, weight: Weight) -> bool:
        """A product with A or B in a new graph takes the view for its weight. Whether to stop after it: not before its
        mask is there."""
        self._was_asked = True
        _pointer(node + _SOURCE).value = weight.view
        if not weight.is_b:
            self._reshape(node, *self._windows[weight.layout])
        elif self._product:
            raise ValueError("a product of B is not scaled")
        else:
            self._product = node
        return False

    def _adapt(self, node: int, weight: Weight) -> bool:
        """The same in a graph that is used again, perhaps for other windows. Whether to stop after it."""
        self._was_asked = True
        if not weight.is_b:
            if self._is_cut_anew:
                self._reshape(node, *self._windows[weight.layout])
            return False
        if self._is_cut_anew:
            product = _pointer(node + _SOURCE + 8).value
            delta = _pointer(product + _SOURCE).value
            ctypes.memmove(product + _NE, delta + _NE, _N_SHAPE)
            _pointer(product + _SOURCE + 8).value = self._tensor(weight.layout, delta)
        return weight in self._factors

    def _reshape(self, delta: int, start: int, stop: int) -> None:
        """A x of these rows, in memory that has room for all."""
        shape = (stop - start, *(_int64(delta + _NE + 8 * i).value for i in (1, 2, 3)))
        struct.pack_into("<8q", (ctypes.c_char * _N_SHAPE).from_address(delta + _NE), 0, *shape, *_strides(shape))

    def _insert_mask(self, scale: int, product: int) -> Weight:
        """From A x -> B A x -> scale to A x -> mask -> B. Whose B."""
        delta, weight = _pointer(product + _SOURCE + 8).value, self._at[_pointer(product + _SOURCE).value]
        in_place = _pointer(scale + _DATA).value == _pointer(product + _DATA).value
        unscaled = ctypes.string_at(scale + _PARAMS, len(_UNSCALED)) == _UNSCALED
        if _int32(scale + _OP).value != self._scale or not (in_place and unscaled):
            raise ValueError("llama.cpp adds adapters in another way than expected")
        mask = self._tensor(weight.layout, delta)
        _int32(scale + _OP).value = _int32(product + _OP).value
        ctypes.memmove(scale + _PARAMS, product + _PARAMS, _N_PARAMS)
        ctypes.memmove(scale + _SOURCE, product + _SOURCE, _N_SOURCES)
        _pointer(scale + _SOURCE + 8).value = product
        _int32(product + _OP).value = self._mul
        ctypes.memset(product + _PARAMS, 0, _N_PARAMS)
        ctypes.memset(product + _SOURCE, 0, _N_SOURCES)
        _pointer(product + _SOURCE).value, _pointer(product + _SOURCE + 8).value = delta, mask
        ctypes.memmove(product + _NE, delta + _NE, _N_SHAPE)
        _pointer(product + _DATA).value = _pointer(delta + _DATA).value
        return weight

    def _tensor(self, layout: Layout, delta: int) -> int:
        """The mask for A x, `delta`, as llama.cpp sees it: [rank, n_tokens]; [rank, 1, n_tokens] where a token has
        several experts. Some mask there must be, whatever is wrong: products whose shapes differ end the process."""
        n_tokens = _int64(delta + _NE + 8 * (1 + layout.is_expert)).value
        if n_tokens not in (len(self._rows), len(self._outputs)):  # where the last layer drops the other rows
            self._failure = f"masking failed: a result of {n_tokens} tokens in a batch of {len(self._rows)}"
        mask = self._masks[layout][n_tokens != len(self._rows)]
        start, stop = self._windows[layout]
        tensor = self._tensors.get((layout, n_tokens))
        if tensor is None:
            tensor = self._tensors[layout, n_tokens] = ctypes.create_string_buffer(ctypes.string_at(delta, _OP), _SIZE)
        shape = (stop - start, 1, n_tokens, 1) if layout.is_expert else (stop - start, n_tokens, 1, 1)
        # Of all its columns those in the window, so a row is as long as it is in `mask`.
        struct.pack_into("<8q", tensor, _NE, *shape, *_strides((layout.rank, *shape[1:])))
        _pointer(ctypes.addressof(tensor) + _DATA).value = mask.ctypes.data + 4 * start
        return ctypes.addressof(tensor)

    def _multiply(self, node: int, weight: Weight) -> None:
        """A finished product of B, by the factors of its tokens."""
        width, n_each, n_tokens = (_int64(node + _NE + 8 * i).value for i in range(3))
        if not weight.layout.is_expert:
            n_each, n_tokens = n_tokens, n_each
        factors = self._factors[weight][n_tokens != len(self._rows)]
        data = (ctypes.c_float * width * n_each * n_tokens).from_address(_pointer(node + _DATA).value)
        product = np.ctypeslib.as_array(data)
        np.multiply(product, factors[:, None], product)

    def use(self, joined: Sequence[Joined]) -> None:
        """Other adapters are attached: every address may mean something else now."""
        self._joined = joined
        for known in (self._weights, self._at, self._masks, self._tensors, self._windows, self._factors):
            known.clear()
        self._rows = self._outputs = ()

    def learn(self, index: int, decode: Callable[[], None]) -> bool:
        """Find the weights of joined adapter `index` in a decode under it alone. False: not all were seen."""
        self._learning = index
        decode()
        self._learning = -1
        known = {(w.name, w.is_b) for w in self._weights if w.joined == index}
        return known == {(name, is_b) for name in self._joined[index].layouts for is_b in (False, True)}

    def in_order(self, decode: Callable[[], None]) -> bool:
        """Whether a decode under all adds the joined adapters to each of the base's tensors in their order."""
        self._seen = []
        self._learning = len(self._joined)
        decode()
        self._learning = -1
        orders: dict[str, list[int]] = {}
        for weight in self._seen:
            orders.setdefault(weight.name, []).append(weight.joined)
        return bool(orders) and all(order == sorted(order) for order in orders.values())

    def _learn(self, address: int) -> None:
        if self._learning == len(self._joined):
            self._seen += [self._at[address]] if address in self._at else []
        elif address and address not in self._at:
            name = ctypes.string_at(address + _NAME).decode(errors="replace")
            layout = self._joined[self._learning].layouts.get(name[: -len(A)])
            if layout is not None and name.endswith((A, B)):
                weight = Weight(address, self._learning, name[: -len(A)], layout, is_b=name.endswith(B))
                self._weights.append(weight)
                self._at[address] = self._at[weight.view] = weight
                self._add_mask(layout)

    def _add_mask(self, layout: Layout) -> None:
        if layout not in self._masks:
            empty = np.zeros((2, self._n_rows, layout.rank), np.float32)
            self._masks[layout] = (empty[0], empty[1])

    def prepare(self, rows: tuple[Scales, ...], wanted: Sequence[int]) -> None:
        """`rows[i]`: the mix of batch row i; `wanted[i]`: whether its logits are asked for."""
        self._failure, self._product = "", 0
        if self._was_asked:
            self._is_cut_anew = False
        outputs = rows if all(wanted) else tuple(itertools.compress(rows, wanted))
        if rows == self._rows and outputs == self._outputs:
            return
        self._rows, self._outputs = rows, outputs
        for layout, masks in self._masks.items():
            for mask, chosen in zip(masks, (self._rows, outputs), strict=True):
                mask[: len(chosen)] = owners_of(layout, chosen)
        self._cut({digest for scales in rows for digest, _ in scales})
        made: dict[tuple[Layout, float], tuple[Mask, Mask] | None] = {}
        self._factors = {}
        for weight in filter(attrgetter("is_b"), self._weights):
            layout, factor = weight.layout, self._joined[weight.joined].factor
            if (layout, factor) not in made:
                both = factors_of(layout, self._rows, factor), factors_of(layout, outputs, factor)
                made[layout, factor] = None if all((one == 1).all() for one in both) else both
            if (factors := made[layout, factor]) is not None:
                self._factors[weight] = factors

    def _cut(self, digests: Container[str]) -> None:
        """Compute of what is joined the part in which these adapters are."""
        windows = {layout: layout.window(digests) for layout in self._masks}
        if windows != self._windows:
            self._windows, self._is_cut_anew, self._was_asked = windows, True, False
            for weight in self._weights:
                weight.cut(*windows[weight.layout])

    @property
    def problem(self) -> str:
        """Why what was computed since `prepare` cannot be trusted; "" where it can."""
        return self._failure or ("masking failed: a product of B is not scaled" if self._product else "")

    @property
    def asks(self) -> bool:
        """Whether the next decode has to call back also when it uses its graph again: to multiply by factors, or to
        change shapes."""
        return bool(self._factors) or self._is_cut_anew


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


def _strides(shape: Sequence[int]) -> list[int]:
    """Bytes, of floats side by side."""
    return [4 * math.prod(shape[:i]) for i in range(len(shape))]
