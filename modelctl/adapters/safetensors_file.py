"""The tensors of a safetensors file, one at a time. bfloat16, which numpy lacks, becomes float32, exactly."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelctl.adapters.errors import InvalidPeft

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: `shape` in numpy's order, `size` bytes at file offset `offset`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_entries(path: Path) -> dict[str, Entry]:
    """{name: entry}, in file order. Raises `InvalidPeft` for what safetensors' own checks refuse."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks lengths, bounds, overlaps and dtypes of the whole header
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise InvalidPeft(path, "no such file") from None
    except OSError as error:
        raise InvalidPeft(path, f"cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        hint = "copy or download the file again"
        raise InvalidPeft(path, f"not a valid safetensors file: {error}", hint=hint) from None
    header.pop("__metadata__", None)
    return {name: _entry(name, fields, 8 + length) for name, fields in header.items()}


def _entry(name: str, fields: dict[str, Any], start: int) -> Entry:
    begin, end = fields["data_offsets"]
    return Entry(name, fields["dtype"], tuple(fields["shape"]), start + begin, end - begin)


def load(path: Path, entry: Entry) -> NDArray[np.float32]:
    """The tensor as float32, whatever it was; only float64 is rounded."""
    import numpy as np

    with path.open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
    if len(data) != entry.size:
        raise InvalidPeft(path, "changed while it was read")
    array = np.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
