"""llama.cpp as a library: its log, and what it was built with."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import llama_cpp.llama_cpp as lib
from llama_cpp._ggml import libggml

_log_level = 3
_N_OPS = 64  # of ggml's operations, those that are looked at for a name


@lib.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes callback type
def _log(level: int, text: bytes, _data: object) -> None:
    if 4 >= level >= _log_level and b"cannot use buft" not in text:  # one line for each weight of each adapter
        sys.stderr.write(text.decode(errors="replace"))


def start_backend(log_level: int = 3) -> None:
    """Call once a process, first. llama.cpp's lines from `log_level` (3: warnings) up go to stderr."""
    global _log_level
    _log_level = log_level
    lib.llama_log_set(_log, ctypes.c_void_p(0))  # _log is a module global: a collected callback would segfault
    lib.llama_backend_init()


def op_number(name: str) -> int:
    """Of a ggml operation; -1 where it has no such one."""
    libggml.ggml_op_name.restype = ctypes.c_char_p
    names = (libggml.ggml_op_name(i) for i in range(_N_OPS))
    return next((i for i, known in enumerate(names) if known == name.encode()), -1)


def gomp_parallel() -> Callable[..., Any] | None:
    """GNU OpenMP's call that runs a team of threads, where llama.cpp was built with that."""
    is_llvm = hasattr(libggml, "__kmpc_fork_call")  # has a call of that name too
    return None if is_llvm else getattr(libggml, "GOMP_parallel", None)


def can_offload() -> bool:
    """Whether the installed llama.cpp was built with a GPU backend that it can use here."""
    return bool(lib.llama_supports_gpu_offload())
