"""Masks what joined adapters add, token by token, while llama.cpp computes.

llama.cpp asks the callback about every node of a graph before it computes it. What an adapter adds to a product is four
nodes: A x, B A x, that times a scale, and the sum with W x. Joined adapters run at scale 1, so the third has nothing to
do, and its place is used: B A x becomes A x times a mask, and the scale becomes B times that. A graph is used for many
steps and so is changed once; another crowd of the same size is other numbers in the same mask.

The mask is 1 where the rows of A are those of the token's own adapter, 0 elsewhere. Where a token wants another scale
than B holds already, the callback stops llama.cpp after B's product and multiplies. Each of these is exact, so the bits
are those of a batch that runs under one mix.

Weights are recognised by their address: they stay where they are as long as they are loaded, so one look into a table
decides. About two thousand questions a graph, at a third of a microsecond; none for a graph that is used again, unless
there is something to multiply.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelctl.runner.joined import A, B, Joined, Layout
from modelctl.runner.sequence import Scales

# struct ggml_tensor on 64-bit machines: type, buffer, ne[4], nb[4], op, op_params[16], flags, src[10], view_src,
# view_offs, data, name[64], extra
_NE, _OP, _PARAMS, _SOURCE, _DATA, _NAME, _SIZE = 16, 80, 84, 152, 248, 256, 336
_N_SHAPE, _N_PARAMS, _N_SOURCES = 64, 64, 80  # bytes of ne and nb, op_params, src
_int32 = ctypes.c_int32.from_address
_int64 = ctypes.c_int64.from_address
_pointer = ctypes.c_uint64.from_address
_UNSCALED = struct.pack("<2f", 1.0, 0.0)  # op_params of a scale node that changes nothing: scale, bias

Mask = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weight:
    """A or B of a joined adapter, somewhere in memory."""

    joined: int  # which of those that are attached
    name: str  # of the base's tensor
    is_b: bool


class Masker:
    """`learn` once after joined adapters are loaded, `prepare` before each decode; `callback` does the rest."""

    def __init__(self, n_rows: int, op_number: Callable[[str], int]) -> None:
        """`n_rows`: of the largest batch. `op_number`: of a ggml operation, by its name."""
        self._n_rows = n_rows
        self._mul, self._scale = op_number("MUL"), op_number("SCALE")
        self._joined: Sequence[Joined] = ()
        self._weights: dict[int, Weight] = {}
        self._layouts: dict[int, Layout] = {}  # of B, by its address
        self._masks: dict[Layout, tuple[Mask, Mask]] = {}  # [n_rows, rank] each: for all rows, for the outputs
        self._tensors: dict[tuple[Layout, int], Any] = {}  # masks as llama.cpp sees them, by their number of tokens
        self._factors: dict[int, tuple[Mask, Mask]] = {}  # what B's products are still to be multiplied by, if anything
        self._rows: tuple[Scales, ...] = ()
        self._outputs: tuple[Scales, ...] = ()
        self._product = 0  # the node of B A x that was asked about last, when it is to be changed
        self._learning = -1
        self._seen: list[Weight] = []
        self._failure = ""

    def callback(self, node: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback."""
        try:
            weight = _pointer(node + _SOURCE).value
            if not ask:
                self._multiply(node, weight)
            elif self._learning >= 0:
                self._learn(weight)
            elif weight in self._layouts:
                if _int32(_pointer(node + _SOURCE + 8).value + _OP).value == self._mul:
                    return weight in self._factors
                if self._product:
                    raise ValueError("a product of B is not scaled")
                self._product = node
            elif self._product and weight == self._product:
                self._product = 0
                return self._insert_mask(node, weight) in self._factors
        except Exception as error:  # ctypes would print it, and llama.cpp go on with what is not masked
            self._failure = f"masking failed: {error}"
        return not ask

    def _insert_mask(self, scale: int, product: int) -> int:
        """From A x -> B A x -> scale to A x -> mask -> B. The address of B."""
        delta, weight = _pointer(product + _SOURCE + 8).value, _pointer(product + _SOURCE).value
        in_place = _pointer(scale + _DATA).value == _pointer(product + _DATA).value
        unscaled = ctypes.string_at(scale + _PARAMS, len(_UNSCALED)) == _UNSCALED
        if _int32(scale + _OP).value != self._scale or not (in_place and unscaled):
            raise ValueError("llama.cpp adds adapters in another way than expected")
        mask = self._tensor(self._layouts[weight], delta)
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
        several experts."""
        rank, n_tokens = _int64(delta + _NE).value, _int64(delta + _NE + 8 * (1 + layout.is_expert)).value
        mask = self._for(n_tokens, *self._masks[layout])
        if rank != mask.shape[1]:
            raise ValueError(f"a rank of {rank} where {mask.shape[1]} was expected")
        tensor = self._tensors.get((layout, n_tokens))
        if tensor is None:
            tensor = self._tensors[layout, n_tokens] = ctypes.create_string_buffer(_SIZE)
            address = ctypes.addressof(tensor)
            ctypes.memmove(address, delta, _OP)
            shape = (rank, 1, n_tokens, 1) if layout.is_expert else (rank, n_tokens, 1, 1)
            strides = [4 * math.prod(shape[:i]) for i in range(len(shape))]
            struct.pack_into("<8q", tensor, _NE, *shape, *strides)
        _pointer(ctypes.addressof(tensor) + _DATA).value = mask.ctypes.data
        return ctypes.addressof(tensor)

    def _multiply(self, node: int, weight: int) -> None:
        """A finished product of B, by the factors of its tokens."""
        width, n_each, n_tokens = (_int64(node + _NE + 8 * i).value for i in range(3))
        if not self._layouts[weight].is_expert:
            n_each, n_tokens = n_tokens, n_each
        factors = self._for(n_tokens, *self._factors[weight])
        data = (ctypes.c_float * width * n_each * n_tokens).from_address(_pointer(node + _DATA).value)
        view = np.ctypeslib.as_array(data)
        np.multiply(view, factors[:, None], view)

    def _for(self, n_tokens: int, rows: Mask, outputs: Mask) -> Mask:
        """Those of all rows, or those of the outputs, where the last layer drops the rest."""
        if n_tokens not in (len(self._rows), len(self._outputs)):
            raise ValueError(f"a result of {n_tokens} tokens in a batch of {len(self._rows)}")
        return rows if n_tokens == len(self._rows) else outputs

    def use(self, joined: Sequence[Joined]) -> None:
        """Other adapters are attached: every address may mean something else now."""
        self._joined = joined
        for known in (self._weights, self._layouts, self._masks, self._tensors, self._factors):
            known.clear()
        self._rows = self._outputs = ()

    def learn(self, index: int, decode: Callable[[], None]) -> bool:
        """Find the weights of joined adapter `index` in a decode under it alone. False: not all were seen."""
        self._learning = index
        decode()
        self._learning = -1
        known = {(w.name, w.is_b) for w in self._weights.values() if w.joined == index}
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
            self._seen += [self._weights[address]] if address in self._weights else []
        elif address:
            name = ctypes.string_at(address + _NAME).decode(errors="replace")
            if name.endswith((A, B)):
                self._weights[address] = weight = Weight(self._learning, name[: -len(A)], name.endswith(B))
                if weight.is_b and (layout := self._joined[weight.joined].layouts.get(weight.name)):
                    self._layouts[address] = layout
                    self._add_mask(layout)

    def _add_mask(self, layout: Layout) -> None:
        if layout not in self._masks:
            empty = np.zeros((2, self._n_rows, layout.parts[-1].stop), np.float32)
            self._masks[layout] = (empty[0], empty[1])

    def prepare(self, rows: tuple[Scales, ...], wanted: Sequence[int]) -> None:
        """`rows[i]`: the mix of batch row i; `wanted[i]`: whether its logits are asked for."""
        self._failure, self._product = "", 0
        outputs = rows if all(wanted) else tuple(itertools.compress(rows, wanted))
        if rows == self._rows and outputs == self._outputs:
            return
        self._rows, self._outputs = rows, outputs
        for layout, masks in self._masks.items():
            for mask, chosen in zip(masks, (self._rows, outputs), strict=True):
                mask[: len(chosen)] = owners_of(layout, chosen)
        made: dict[tuple[Layout, float], tuple[Mask, Mask] | None] = {}
        self._factors = {}
        for address, layout in self._layouts.items():
            factor = self._joined[self._weights[address].joined].factor
            if (layout, factor) not in made:
                both = factors_of(layout, self._rows, factor), factors_of(layout, outputs, factor)
                made[layout, factor] = None if all((one == 1).all() for one in both) else both
            if (factors := made[layout, factor]) is not None:
                self._factors[address] = factors

    @property
    def problem(self) -> str:
        """Why what was computed since `prepare` cannot be trusted; "" where it can."""
        return self._failure or ("masking failed: a product of B is not scaled" if self._product else "")

    @property
    def stops(self) -> bool:
        """Whether the next decode is to be stopped, to multiply by factors."""
        return bool(self._factors)


def owners_of(layout: Layout, rows: Sequence[Scales]) -> Mask:
    """[n_tokens, rank]: 1 where the row of A is of an adapter in the token's mix."""
    mask = np.zeros((len(rows), layout.parts[-1].stop), np.float32)
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
