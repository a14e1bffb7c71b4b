"""Masks what joined adapters add, token by token, while llama.cpp computes.

llama.cpp asks the callback about every node of the graph, "do you want its result?", and hands over those it wanted
before it goes on. Nodes are recognised by the address of the weight they read: weights stay where they are as long as
they are loaded, so one look into a table decides. About two thousand questions a step, at a third of a microsecond.

For each token, A x is multiplied by 1 where the rows are those of its own adapter and by 0 elsewhere, and then B A x by
what llama.cpp's own scale node would have multiplied by, over what that node does multiply by. Each of these is exact,
so the bits are those of a batch that runs under one mix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelctl.runner.joined import A, B, Joined, Layout
from modelctl.runner.sequence import Scales

# struct ggml_tensor on 64-bit machines: type, buffer, ne[4], nb[4], op, op_params[16], flags, src[10], view_src,
# view_offs, data, name[64]
_NE, _SOURCE, _DATA, _NAME = 16, 152, 248, 256
_int64 = ctypes.c_int64.from_address
_pointer = ctypes.c_uint64.from_address

Mask = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weight:
    """A or B of a joined adapter, somewhere in memory."""

    joined: int  # which of those that are attached
    name: str  # of the base's tensor
    is_b: bool


class Masker:
    """`learn` once after joined adapters are loaded, `prepare` before each decode; `callback` does the rest."""

    def __init__(self) -> None:
        self._joined: Sequence[Joined] = ()
        self._weights: dict[int, Weight] = {}
        self._wanted: dict[int, tuple[Layout, Mask, Mask]] = {}  # what this step masks: for all rows, for the outputs
        self._views: dict[tuple[int, int, int], Mask] = {}
        self._rows: tuple[Scales, ...] = ()
        self._outputs: tuple[Scales, ...] = ()
        self._learning = -1
        self._seen: list[Weight] = []
        self.problem = ""  # why what was computed since `prepare` cannot be trusted

    def callback(self, node: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback."""
        try:
            weight = _pointer(node + _SOURCE).value
            if ask:
                if self._learning >= 0:
                    self._learn(weight)
                return weight in self._wanted
            entry = self._wanted.get(weight)
            if entry is not None:
                self._mask(node, *entry)
        except Exception as error:  # ctypes would print it, and llama.cpp go on with what is not masked
            self.problem = f"masking failed: {error!r}"
        return not ask

    def _mask(self, node: int, layout: Layout, rows: Mask, outputs: Mask) -> None:
        width, n_tokens = _int64(node + _NE).value, _int64(node + _NE + 8).value
        n_each = 1
        if layout.is_expert:
            n_each, n_tokens = n_tokens, _int64(node + _NE + 16).value
        mask = rows if n_tokens == len(rows) else outputs
        if n_tokens != len(mask) or mask.shape[-1] not in (1, width):
            self.problem = f"a result of {width} x {n_each} x {n_tokens} where {mask.shape[::-1]} was expected"
        elif n_tokens:
            view = self._view(_pointer(node + _DATA).value, width * n_each, n_tokens)
            if n_each > 1:
                view = view.reshape(n_tokens, n_each, width)
                mask = mask[:, None]
            np.multiply(view, mask, view)

    def _view(self, address: int, width: int, n_tokens: int) -> Mask:
        """Results land in the same few places over and over."""
        key = (address, width, n_tokens)
        view = self._views.get(key)
        if view is None:
            data = (ctypes.c_float * width * n_tokens).from_address(address)
            view = self._views[key] = np.ctypeslib.as_array(data)
        return view

    def use(self, joined: Sequence[Joined]) -> None:
        """Other adapters are attached: every address may mean something else now."""
        self._joined = joined
        for known in (self._weights, self._wanted, self._views):
            known.clear()
        self._rows = self._outputs = ()

    def learn(self, index: int, decode: Callable[[], None]) -> bool:
        """Find the weights of joined adapter `index` in a decode under it alone. False: not all were seen."""
        self._wanted.clear()
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
                self._weights[address] = Weight(self._learning, name[: -len(A)], name.endswith(B))

    def prepare(self, rows: Sequence[Scales], wanted: Sequence[int]) -> None:
        """`rows[i]`: the mix of batch row i; `wanted[i]`: whether its logits are asked for."""
        self.problem = ""
        outputs = tuple(scales for scales, w in zip(rows, wanted, strict=True) if w)
        if tuple(rows) == self._rows and outputs == self._outputs:
            return
        self._rows, self._outputs = tuple(rows), outputs
        self._views.clear()
        made: dict[tuple[Layout, bool], tuple[Mask, Mask] | None] = {}
        self._wanted = {}
        for address, weight in self._weights.items():
            joined = self._joined[weight.joined]
            layout = joined.layouts[weight.name]
            key = (layout, weight.is_b)
            if key not in made:
                made[key] = self._masks(layout, joined.factor, weight.is_b)
            if (masks := made[key]) is not None:
                self._wanted[address] = (layout, *masks)

    def _masks(self, layout: Layout, factor: float, is_b: bool) -> tuple[Mask, Mask] | None:
        """For all rows and for the outputs; None where there is nothing to mask."""
        masks = [
            factors_of(layout, rows, factor) if is_b else owners_of(layout, rows)
            for rows in (self._rows, self._outputs)
        ]
        return None if all((mask == 1).all() for mask in masks) else (masks[0], masks[1])


def owners_of(layout: Layout, rows: Sequence[Scales]) -> Mask:
    """[n_tokens, rank]: 1 where the row of A is of an adapter in the token's mix."""
    mask = np.zeros((len(rows), layout.parts[-1].stop), np.float32)
    for i, scales in enumerate(rows):
        digests = {digest for digest, _ in scales}
        for part in layout.parts:
            mask[i, part.start : part.stop] = part.digest in digests
    return mask


def factors_of(layout: Layout, rows: Sequence[Scales], factor: float) -> Mask:
    """[n_tokens, 1]: what B A x is still to be multiplied by, when the graph multiplies by `factor`."""
    mask = np.ones((len(rows), 1), np.float32)
    parts = {part.digest: part for part in layout.parts}
    for i, scales in enumerate(rows):
        for digest, scale in scales:
            if digest in parts:
                mask[i] = parts[digest].factor(scale) / np.float32(factor)
    return mask
