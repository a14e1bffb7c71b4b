"""llama.cpp's tensors as numpy arrays of structs, to read and to change where they lie.

The layout is that of struct ggml_tensor on 64-bit machines. Tensors of one context lie one behind another, each behind
a struct ggml_object that leads to the next.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
import numpy.typing as npt

TENSOR = np.dtype("i4, i4, i8, 4i8, 4i8, i4, 16i4, i4, 10i8, 2i8, i8, V64, 2i8")
_FIELDS = "type pad buffer ne nb op params flags source view data name extra"
TENSOR.names = tuple(_FIELDS.split())
_OBJECT = np.dtype([("place", "i8", 2), ("next", "i8"), ("kind", "i8"), ("tensor", TENSOR)])
_HEAD = _OBJECT.fields["tensor"][1]  # type: ignore[index]
_N_READ = 1024  # objects at a time
F32 = 0  # GGML_TYPE_F32
STRIDE = _OBJECT.itemsize  # from one tensor to the next

Ints = npt.NDArray[np.int64]
Tensors = npt.NDArray[np.void]  # of TENSOR


def field(tensor: int, name: str) -> int:
    """The first word of a field of the tensor at this address."""
    return ctypes.c_int64.from_address(tensor + TENSOR.fields[name][1]).value  # type: ignore[index]


def name_of(tensor: int) -> str:
    return ctypes.string_at(tensor + TENSOR.fields["name"][1]).decode(errors="replace")  # type: ignore[index]


def copies(tensors: Ints) -> Tensors:
    """Of the structs at these addresses."""
    structs = b"".join(ctypes.string_at(at, TENSOR.itemsize) for at in tensors.ravel().tolist())
    return np.frombuffer(structs, TENSOR).reshape(tensors.shape).copy()


def addresses(tensors: Tensors) -> Ints:
    """Of each, in the same shape; the array lives at least as long as llama.cpp has these."""
    return tensors.ctypes.data + TENSOR.itemsize * np.arange(tensors.size).reshape(tensors.shape)


def reshape(tensors: Tensors | np.void, shape: Ints) -> None:
    """To floats side by side, in `shape`, [..., 4]."""
    tensors["ne"] = shape
    tensors["nb"][..., 0] = 4
    tensors["nb"][..., 1:] = 4 * np.cumprod(shape, axis=-1)[..., :-1]


def tensors_from(first: int) -> Tensors:
    """The tensor at this address and those that were made after it, as far as they lie side by side; not copied. Looked
    at through a file first, since the end of their memory is not known."""
    start = first - _HEAD
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        n, follows = 0, True
        while follows:
            data = os.pread(memory, _N_READ * STRIDE, start + n * STRIDE)
            objects = np.frombuffer(data[: len(data) // STRIDE * STRIDE], _OBJECT)
            nexts = start + STRIDE * np.arange(n + 1, n + 1 + len(objects))
            ends = np.flatnonzero(objects["next"] != nexts)
            follows = len(objects) > 0 and not len(ends)
            n += len(objects) if not len(ends) else int(ends[0]) + 1
    finally:
        os.close(memory)
    tensors: Tensors = np.ctypeslib.as_array((ctypes.c_uint8 * (n * STRIDE)).from_address(start)).view(_OBJECT)[
        "tensor"
    ]
    return tensors
