"""Read a GGUF header without native code, and without trusting it.

llama.cpp ends the process on many malformed files, so nothing native sees a file before this has read it. Every
count is checked against the bytes that are left before anything is allocated, arithmetic is Python's (no overflow),
and arrays are walked over, not loaded: the vocabulary of a base stays on disk until `Array.values()` asks for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelctl.gguf_check.ggml_types import ARRAY, SCALARS, STRING, TENSOR_TYPES
from modelctl.gguf_check.source import MAX_STRING, InvalidGGUF, Source

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_ARRAY = 64 << 20  # elements
MAX_KEY = 65_535
MAX_NAME = 63  # ggml keeps tensor names in 64 bytes
DEFAULT_ALIGNMENT = 32

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")
_MIN_KEY = 8 + 1 + 4 + 1  # key length, one letter, type, one byte
_MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # name length, one letter, n_dims, one dim, type, offset


@dataclass(frozen=True, slots=True)
class Array:
    """An array of the metadata, left on disk: `length` elements of `type` in `size` bytes at file offset `offset`."""

    path: Path
    type: str
    length: int
    offset: int
    size: int

    def values(self) -> list[int | float] | list[bytes]:
        """The elements; strings as the bytes in the file, since not every vocabulary is UTF-8."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return self._unpack(file.read(self.size))
        except (OSError, struct.error):
            raise InvalidGGUF(self.path, "changed while it was read") from None

    def _unpack(self, data: bytes) -> list[int | float] | list[bytes]:
        if self.type == "STRING":
            return list(_strings(data))
        code = next(scalar.format[-1] for name, scalar in SCALARS.values() if name == self.type)
        return list(struct.unpack(f"<{self.length}{code}", data))


def _strings(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + 8 + _U64.unpack_from(data, at)[0]
        yield data[at + 8 : end]
        at = end


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` in ggml's order: ne[0], the length of a row, first. `offset` counts from the start of the file, bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def n_elements(self) -> int:
        n = 1
        for length in self.shape:
            n *= length
        return n


Value = int | float | bool | str | Array


@dataclass(frozen=True, slots=True)
class Header:
    """All of a GGUF file but its data. `types` has the type of each metadata value: "UINT32", "STRING", "ARRAY"..."""

    path: Path
    version: int
    metadata: dict[str, Value]
    types: dict[str, str]
    tensors: dict[str, Tensor]
    alignment: int
    file_size: int

    @property
    def architecture(self) -> str:
        """general.architecture, or "" where it is missing or no string."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    @property
    def general_type(self) -> str:
        """general.type: "model" unless the file says otherwise."""
        return str(self.metadata.get("general.type", "model"))

    def invalid(self, problem: str, *, hint: str | None = None) -> InvalidGGUF:
        return InvalidGGUF(self.path, problem, hint=hint)


def read_header(path: Path) -> Header:
    """The header of a GGUF file, version 2 or 3, little-endian. Raises `InvalidGGUF`.

    What holds afterwards: keys and tensor names are unique, tensor types are known, shapes have 1 to 4 dimensions of
    at least 1, and the tensors lie in the file in order, aligned, without overlap or gap.
    """
    try:
        if not path.is_file():
            raise InvalidGGUF(path, _not_a_file(path))
        with path.open("rb") as file:
            size = file.seek(0, 2)
            return _read(Source(path, file, size))
    except OSError as error:
        raise InvalidGGUF(path, f"cannot be read: {error.strerror or error}") from None


def _not_a_file(path: Path) -> str:
    if path.is_dir():
        return "expected a GGUF file, found a folder"
    return "not a regular file" if path.exists() else "no such file"


def _read(source: Source) -> Header:
    version = _version(source)
    n_tensors = _count(source, "tensors", MAX_TENSORS, _MIN_TENSOR)
    n_keys = _count(source, "metadata keys", MAX_KEYS, _MIN_KEY)
    metadata: dict[str, Value] = {}
    types: dict[str, str] = {}
    for index in range(n_keys):
        key = _new_name(source, MAX_KEY, f"metadata key {index}", metadata)
        types[key], metadata[key] = _value(source, key)
    alignment = _alignment(source, metadata, types)
    infos = _tensor_infos(source, n_tensors)
    tensors = _place(source, infos, alignment)
    return Header(source.path, version, metadata, types, tensors, alignment, source.size)


def _version(source: Source) -> int:
    magic = source.take(min(8, source.left), "the header")
    if magic[:4] != b"GGUF":
        raise source.invalid(f"not a GGUF file: {_starts_with(magic)}", hint=_other_format(source.path, magic))
    if len(magic) < 8:
        raise source.invalid("truncated or corrupt: it ends within the first 8 bytes")
    version = _U32.unpack(magic[4:])[0]
    if version and not version & 0xFFFF:
        raise source.invalid("a big-endian GGUF file; expected little-endian", hint="convert it for this machine")
    if version not in (2, 3):
        raise source.invalid(f"GGUF version {version}; expected 2 or 3", hint="convert it with a current llama.cpp")
    return int(version)


def _starts_with(magic: bytes) -> str:
    return f"starts with {repr(magic)[1:]}" if magic else "it is empty"  # without Python's b


def _other_format(path: Path, magic: bytes) -> str:
    if path.suffix == ".safetensors" or path.name == "adapter_config.json":
        return f"for a PEFT adapter give the folder: {path.parent}"
    if magic[:2] == b"PK" or magic[:1] == b"\x80" or path.suffix in (".bin", ".pt", ".pth"):
        return "it looks like a PyTorch pickle, which is never loaded; save it as safetensors, or convert it to GGUF"
    if magic[:4] in (b"tjgg", b"fmgg", b"lmgg", b"algg"):
        return "it is in a format from before GGUF; convert it with a current llama.cpp"
    if magic.startswith(b"version "):
        return "it looks like a Git LFS pointer; fetch the real file with `git lfs pull`"
    return "expected the bytes GGUF at its start"


def _count(source: Source, what: str, limit: int, minimum: int) -> int:
    count = source.u64(f"the number of {what}")
    if count > limit:
        raise source.invalid(f"claims {count} {what}; the limit is {limit}")
    if count * minimum > source.left:
        raise source.invalid(f"truncated or corrupt: claims {count} {what}, with {source.left} bytes left")
    return count


def _new_name(source: Source, limit: int, what: str, known: dict[str, Value] | dict[str, Tensor]) -> str:
    name = source.text(limit, what)
    if not name:
        raise source.invalid(f"{what} has an empty name")
    if name in known:
        raise source.invalid(f"{what} is a duplicate of {name!r}")
    return name


def _value(source: Source, key: str) -> tuple[str, Value]:
    what = f"metadata {key!r}"
    kind = source.u32(what)
    if kind == ARRAY:
        return "ARRAY", _array(source, what)
    if kind == STRING:
        return "STRING", source.text(MAX_STRING, what)
    name, layout = _scalar(source, kind, what)
    value = source.unpack(layout, what)[0]
    return name, bool(value) if name == "BOOL" else value


def _scalar(source: Source, kind: int, what: str) -> tuple[str, struct.Struct]:
    if kind not in SCALARS:
        raise source.invalid(f"{what} has the unknown value type {kind}")
    return SCALARS[kind]


def _array(source: Source, what: str) -> Array:
    head = source.take(_ARRAY_HEAD.size, what)
    kind, length = _ARRAY_HEAD.unpack(head)
    if kind == ARRAY:
        raise source.invalid(f"{what} is an array of arrays, which GGUF readers do not take")
    name, width = ("STRING", 8) if kind == STRING else (lambda s: (s[0], s[1].size))(_scalar(source, kind, what))
    if length > MAX_ARRAY:
        raise source.invalid(f"{what} claims {length} elements; the limit is {MAX_ARRAY}")
    start = source.offset
    if length * width > source.left:
        raise source.invalid(f"truncated or corrupt: {what} claims {length} elements, with {source.left} bytes left")
    if kind == STRING:
        source.skip_strings(length, what)
    else:
        source.skip(length * width, what)
    return Array(source.path, name, length, start, source.offset - start)


def _alignment(source: Source, metadata: dict[str, Value], types: dict[str, str]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    found = types.get("general.alignment", "UINT32")
    if found != "UINT32" or not isinstance(value, int):
        raise source.invalid(f"general.alignment must be of type UINT32, found {found}")
    if value < 1 or value & (value - 1):
        raise source.invalid(f"general.alignment must be a power of two, found {value}")
    return value


def _tensor_infos(source: Source, count: int) -> dict[str, Tensor]:
    """The tensors with their offsets as written: from the start of the data."""
    tensors: dict[str, Tensor] = {}
    for index in range(count):
        name = _new_name(source, MAX_NAME, f"the name of tensor {index}", tensors)
        tensors[name] = _tensor_info(source, name)
    return tensors


def _tensor_info(source: Source, name: str) -> Tensor:
    what = f"tensor {name!r}"
    n_dims = source.u32(what)
    if not 1 <= n_dims <= 4:
        raise source.invalid(f"{what} has {n_dims} dimensions; expected 1 to 4")
    shape = source.unpack(struct.Struct(f"<{n_dims}Q"), what)
    if not all(1 <= length < 1 << 63 for length in shape):
        raise source.invalid(f"{what} has the shape {list(shape)}; every dimension must be 1 or more")
    kind, offset = source.unpack(struct.Struct("<IQ"), what)
    if kind not in TENSOR_TYPES:
        raise source.invalid(f"{what} has the unknown type {kind}", hint="a newer modelctl may know it")
    type_name, block, size = TENSOR_TYPES[kind]
    if shape[0] % block:
        raise source.invalid(f"{what} has rows of {shape[0]} elements; {type_name} needs a multiple of {block}")
    tensor = Tensor(name, shape, type_name, offset, 0)
    return Tensor(name, shape, type_name, offset, tensor.n_elements // block * size)


def _place(source: Source, tensors: dict[str, Tensor], alignment: int) -> dict[str, Tensor]:
    """Make offsets count from the start of the file, and check that the data lies as llama.cpp demands: each tensor
    right after the one before it, padded to the alignment, all inside the file."""
    start = _pad(source.offset, alignment)
    expected = 0
    placed = {}
    for name, tensor in tensors.items():
        if tensor.offset != expected:
            raise source.invalid(f"tensor {name!r} is at data offset {tensor.offset}; expected {expected}")
        end = start + expected + tensor.size
        if end > source.size:
            raise source.invalid(
                f"truncated or corrupt: tensor {name!r} ends at byte {end}, the file has {source.size}",
                hint="copy or download the file again",
            )
        placed[name] = Tensor(name, tensor.shape, tensor.type, start + expected, tensor.size)
        expected += _pad(tensor.size, alignment)
    return placed


def _pad(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
