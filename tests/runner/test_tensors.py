"""Tensors that ggml made, seen as arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llama_cpp._ggml import libggml

from modelctl.runner.llama.tensors import F32, addresses, copies, field, name_of, reshape, tensors_from


class Params(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def ggml(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments)((name, libggml))


init = ggml("ggml_init", ctypes.c_void_p, Params)
free = ggml("ggml_free", None, ctypes.c_void_p)
new_tensor = ggml("ggml_new_tensor_2d", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
set_name = ggml("ggml_set_name", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
n_elements = ggml("ggml_nelements", ctypes.c_int64, ctypes.c_void_p)
is_contiguous = ggml("ggml_is_contiguous", ctypes.c_bool, ctypes.c_void_p)


@pytest.fixture
def context() -> Iterator[int]:
    made = init(Params(1 << 20, None, True))
    yield made
    free(made)


def test_all_that_were_made_later_are_seen_where_they_lie(context: int) -> None:
    made = [new_tensor(context, F32, 3, i + 1) for i in range(2000)]
    for start in (0, 1, 1999):
        tensors = tensors_from(made[start])
        assert tensors["ne"][:, 1].tolist() == list(range(start + 1, 2001))
    assert tensors_from(made[0])["ne"][:, 0].tolist() == [3] * 2000


def test_what_is_written_is_what_ggml_reads(context: int) -> None:
    first, second = (new_tensor(context, F32, 4, 6) for _ in range(2))
    set_name(second, b"blk.0.attn_q.weight.lora_a")
    reshape(tensors_from(first)[1:], np.array([[5, 7, 2, 1]]))
    assert (n_elements(first), n_elements(second)) == (24, 70)
    assert is_contiguous(second)
    assert name_of(second) == "blk.0.attn_q.weight.lora_a"
    assert field(second, "ne") == 5


def test_a_copy_is_a_tensor_too(context: int) -> None:
    views = copies(np.array([[new_tensor(context, F32, 4, 6)], [new_tensor(context, F32, 2, 2)]]))
    views["ne"][1, 0, 0] = 9
    assert [n_elements(at) for at in addresses(views).ravel().tolist()] == [24, 18]
