"""Several adapters as one: joined along the rank, so that a mask on the `A x` of each token can choose among them.

For adapters i, W x + B_i A_i x = W x + [B_1 B_2 ...] (mask_i * [A_1; A_2; ...] x). Weights stay as they are, so each
token computes the very bits that its own adapter alone would give, as long as the parts begin at multiples of a SIMD
register: hence `PAD`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from modelctl.errors import LoadFailed
from modelctl.gguf_check import InvalidGGUF, Tensor, lora_alpha, read_header
from modelctl.gguf_check.ggml_types import TENSOR_TYPES

A, B = ".lora_a", ".lora_b"
PAD = 16  # floats in the widest register that llama.cpp's matrix products use
ALIGNMENT = 64  # bytes, of a weight's first
TILE = 4  # rows of a matrix that those products need a multiple of; else they go another way, and round otherwise
EMBEDDING = "token_embd.weight"  # looked up, not multiplied: its A is stored the other way round
_FLOATS: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16}
_NUMBERS = {known.name: number for number, known in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of one joined A are `digest`'s; llama.cpp would scale its delta by s * alpha / rank."""

    digest: str
    start: int
    stop: int
    alpha: float

    def factor(self, scale: float) -> np.float32:
        """What llama.cpp multiplies by, in its order and its precision (`llama_adapter_lora_weight::get_scale`)."""
        if not self.alpha:
            return np.float32(scale)
        return np.float32(np.float32(scale) * np.float32(self.alpha)) / np.float32(self.stop - self.start)


@dataclass(frozen=True)
class Layout:
    """How the rows of one joined tensor are owned. `is_expert`: one matrix per expert."""

    parts: tuple[Part, ...]
    is_expert: bool = False

    @property
    def rank(self) -> int:
        return self.parts[-1].stop


class MemoryFile:
    """A file in memory-backed storage, which lives until `close`."""

    def __init__(self, name: str) -> None:
        """Raises `LoadFailed` where the system has none."""
        try:
            self._fd = os.memfd_create(name)
        except (OSError, AttributeError) as error:
            raise LoadFailed(f"no memory file for a {name}: {error}") from None

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def close(self) -> None:
        os.close(self._fd)


class Matrix(NamedTuple):
    """A weight as ggml sees it: its GGML type, elements and bytes to the next along each axis, and its address."""

    type: int
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    data: int


@dataclass(frozen=True)
class Joined:
    """Several adapters as one, in memory of its own, which lives as long as this does. `factor` is what B was
    multiplied by: what llama.cpp would multiply by at scale 1, where that is one power of two for all parts, else 1."""

    digests: tuple[str, ...]
    layouts: Mapping[str, Layout]  # name of the base's tensor -> who owns what
    matrices: Mapping[str, tuple[Matrix, Matrix]]  # the same name -> A and B
    factor: float
    architecture: str
    _memory: mmap.mmap

    @property
    def rank(self) -> int:
        return max((layout.rank for layout in self.layouts.values()), default=0)


class Weight(NamedTuple):
    """A tensor of an adapter file: its elements along each axis as llama.cpp counts them, and its data in numpy's
    order; bytes where it is quantised."""

    type: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]


class Source:
    """One adapter file, its tensors mapped into memory. Raises `LoadFailed` where it cannot be read."""

    def __init__(self, digest: str, path: str) -> None:
        try:
            header = read_header(Path(path))
            data = np.asarray(np.memmap(path, np.uint8, "r"))
            self.tensors = {name: _weight(tensor, data) for name, tensor in header.tensors.items()}
            self.alpha = lora_alpha(header) or 0.0
        except (OSError, ValueError, InvalidGGUF) as error:
            raise LoadFailed(f"the adapter {digest[:19]} cannot be read: {error}") from None
        self.digest = digest
        self.architecture = header.architecture

    @cached_property
    def names(self) -> list[str]:
        """Of the base's tensors that this adapter changes."""
        return [name.removesuffix(A) for name in self.tensors if name.endswith(A)]

    def rank(self, name: str) -> int:
        return self.tensors[name + B].shape[0]

    def n_out(self, name: str) -> int:
        return self.tensors[name + B].shape[1]

    @cached_property
    def max_rank(self) -> int:
        return max(map(self.rank, self.names), default=0)

    @cached_property
    def is_plain(self) -> bool:
        """Matrices of floats."""
        return all(t.type in _FLOATS and (len(t.shape) == 2 or t.shape[2] == 1) for t in self.tensors.values())

    @property
    def kind(self) -> object:
        """Adapters of equal kind may be joined. Others cannot be with anything: quantised weights, experts (whose
        product goes another way), ranks that are no multiple of `PAD`, outputs that are none of `TILE`."""
        if not self.is_plain or any(self.rank(name) % PAD or self.n_out(name) % TILE for name in self.names):
            return self.digest
        types = {(self.tensors[name + A].type, self.tensors[name + B].type) for name in self.names}
        return types.pop() if len(types) == 1 else self.digest


def rank_axis(name: str, suffix: str) -> int:
    """Which axis of a weight is the rank, as llama.cpp counts them: A is [n_in, rank], B is [rank, n_out]."""
    return int(suffix == A and name != EMBEDDING)


def _weight(tensor: Tensor, file: npt.NDArray[np.uint8]) -> Weight:
    data = file[tensor.offset : tensor.offset + tensor.size].view(_FLOATS.get(tensor.type, np.uint8))
    return Weight(tensor.type, tensor.shape, data.reshape(*tensor.shape[:0:-1], -1))


@dataclass(frozen=True)
class _Tensor:
    """One to be written: `parts` side by side along `axis`, times `factor`."""

    name: str
    parts: Sequence[npt.NDArray[Any]]
    axis: int = -1
    factor: float = 1.0

    @property
    def shape(self) -> list[int]:
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def write(self, memory: Any) -> npt.NDArray[Any]:
        """To this buffer, and returns it as an array."""
        data = np.frombuffer(memory, self.dtype).reshape(self.shape)
        np.concatenate(self.parts, self.axis, out=data)
        if self.factor != 1:
            data *= self.dtype.type(self.factor)
        return data


def join(sources: Sequence[Source]) -> Joined:
    """The sources are of one kind, or one alone."""
    names = list(dict.fromkeys(name for source in sources for name in source.names))
    owners = {name: [source for source in sources if name + A in source.tensors] for name in names}
    interned: dict[Layout, Layout] = {}
    layouts: dict[str, Layout] = {}
    for name in names:
        layout = _layout(name, owners[name])
        layouts[name] = interned.setdefault(layout, layout)
    factor = _common_factor(interned, (source.tensors[name + B].data for name in names for source in owners[name]))
    tensors = {
        (name, suffix): _joined_tensor(name, suffix, owners[name], factor) for name in names for suffix in (A, B)
    }
    memory = private_memory(sum(_aligned(tensor.n_bytes) for tensor in tensors.values()) + 1)  # there may be none
    with suppress(AttributeError, OSError):  # a system without huge pages, which are a little faster
        memory.madvise(mmap.MADV_HUGEPAGE)
    written: dict[tuple[str, str], Matrix] = {}
    start = 0
    for (name, suffix), tensor in tensors.items():
        data = tensor.write(memoryview(memory)[start : start + tensor.n_bytes])
        written[name, suffix] = _matrix(owners[name], name, suffix, data)
        start += _aligned(tensor.n_bytes)
    matrices = {name: (written[name, A], written[name, B]) for name in names}
    return Joined(tuple(s.digest for s in sources), layouts, matrices, factor, sources[0].architecture, memory)


def private_memory(n_bytes: int) -> mmap.mmap:
    """Zeros, which cost what is written of them, and go back to the system with this: the heap would keep them."""
    return mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _joined_tensor(name: str, suffix: str, owners: Sequence[Source], factor: float) -> _Tensor:
    axis = -1 - rank_axis(name, suffix)  # numpy counts from the other end
    parts = [source.tensors[name + suffix].data for source in owners]
    return _Tensor(name + suffix, parts, axis, factor if suffix == B else 1.0)


def _matrix(owners: Sequence[Source], name: str, suffix: str, data: npt.NDArray[Any]) -> Matrix:
    first = owners[0].tensors[name + suffix]
    ne = [*first.shape] + [1] * (4 - len(first.shape))
    ne[rank_axis(name, suffix)] = sum(source.rank(name) for source in owners)
    number = _NUMBERS[first.type]
    _, block, size = TENSOR_TYPES[number]
    nb = [size, size * (ne[0] // block)]
    nb += [nb[1] * ne[1], nb[1] * ne[1] * ne[2]]
    return Matrix(number, tuple(ne), tuple(nb), data.ctypes.data)


def carrier(architecture: str, shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> MemoryFile:
    """An adapter of rank 1 and zeros; its nodes in llama.cpp's graphs are there to be changed into those of joined
    adapters. `shapes`: name of a tensor of the base -> `ne` of an A and of a B for it, of any rank."""
    tensors: list[_Tensor] = []
    for name, both in shapes.items():
        for suffix, ne in zip((A, B), both, strict=True):
            shape = [n for i, n in enumerate(ne) if i < 2 or n > 1]
            shape[rank_axis(name, suffix)] = 1
            tensors.append(_Tensor(name + suffix, [np.zeros(shape[::-1], np.float16)]))
    return _write("carrier-adapter", architecture, 0.0, tensors)


def needs_padding(path: str) -> bool:
    """Whether the adapter's rank keeps it from being joined, and zeros would help."""
    try:
        tensors = read_header(Path(path)).tensors
    except InvalidGGUF:
        return False  # llama.cpp will say what is wrong with it
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(B)}
    plain = all(t.type in _FLOATS and len(t.shape) == 2 for t in tensors.values()) and EMBEDDING + A not in tensors
    return plain and len(ranks) == 1 and ranks.pop() % PAD != 0


def pad(source: Source) -> MemoryFile:
    """An adapter that `needs_padding` with zeros up to a rank that can be joined. alpha grows with the rank, so that
    alpha / rank stays."""
    rank = source.max_rank
    n_more = -rank % PAD
    tensors: list[_Tensor] = []
    for name in source.names:
        a, b = source.tensors[name + A].data, source.tensors[name + B].data
        tensors.append(_Tensor(name + A, [a, np.zeros((n_more, a.shape[1]), a.dtype)], -2))
        tensors.append(_Tensor(name + B, [b, np.zeros((b.shape[0], n_more), b.dtype)]))
    alpha = source.alpha * (rank + n_more) / rank
    return _write("padded-adapter", source.architecture, alpha, tensors)


def _layout(name: str, owners: Sequence[Source]) -> Layout:
    ends = np.cumsum([source.rank(name) for source in owners]).tolist()
    parts = [Part(s.digest, i, j, s.alpha) for s, i, j in zip(owners, [0, *ends], ends, strict=False)]
    return Layout(tuple(parts), is_expert=_is_expert(owners[0].tensors[name + B]))


def _is_expert(tensor: Any) -> bool:
    """Whether it holds a matrix per expert."""
    return len(tensor.shape) > 2 and bool(tensor.shape[2] > 1)


def _common_factor(layouts: Iterable[Layout], products: Iterable[npt.NDArray[Any]]) -> float:
    """What all of these B can be multiplied by instead of their products, exactly."""
    factors = {float(part.factor(1.0)) for layout in layouts for part in layout.parts}
    factor = factors.pop() if len(factors) == 1 else 1.0
    if np.frexp(factor)[0] not in (0.5, -0.5):
        return 1.0
    return factor if all(_is_exact(b, b.dtype.type(factor)) for b in products) else 1.0


def _is_exact(b: npt.NDArray[Any], factor: np.floating[Any]) -> bool:
    """Whether no product overflows or, with a factor below 1, loses bits; `factor` is a power of two."""
    if b.dtype.kind != "f":
        return False  # quantised
    with np.errstate(over="ignore"):
        if abs(factor) >= 1:
            return bool(np.isfinite(np.abs(b).max() * factor))
        return bool((b * factor / factor == b).all())


def _write(name: str, architecture: str, alpha: float, tensors: Sequence[_Tensor]) -> MemoryFile:
    """A GGUF adapter in memory, made tensor by tensor. alpha 0: llama.cpp takes the scale as it is."""
    import gguf

    file = MemoryFile(name)
    try:
        writer = gguf.GGUFWriter(Path(file.path), architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for t in tensors:
            writer.add_tensor_info(t.name, t.shape, t.dtype, t.n_bytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in tensors:
            writer.write_tensor_data(t.write(bytearray(t.n_bytes)))
        writer.close()
    except BaseException:
        file.close()
        raise
    return file
