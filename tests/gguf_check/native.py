"""Load and decode GGUF files with llama.cpp, in a child process: a bad file ends the process, not the call.

    python native.py BASE [ADAPTER...]     one JSON line a file: {"file": ..., "result": ...}

A result is "ok", "refused" (llama.cpp said no) or "nan". A file that kills the child has no line. With --logits, lines
that are "ok" have the logits of the last token, too.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def results(base: Path, *adapters: Path) -> dict[str, str]:
    """{file name: result} for the base, then for each adapter at scale 1. "died" for the file the child died on."""
    returncode, lines = _run(base, *adapters)
    found = {line["file"]: line["result"] for line in lines}
    if returncode:
        asked = [path.name for path in (base, *adapters)]
        found[next(name for name in asked if name not in found)] = "died"
    return found


def logits(base: Path, *adapters: Path) -> list[list[float]]:
    """The last token's logits under the base alone, then under each adapter alone."""
    returncode, lines = _run(base, *adapters, "--logits")
    assert returncode == 0
    return [line["logits"] for line in lines]


def _run(*arguments: Path | str) -> tuple[int, list[Any]]:
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return child.returncode, [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]


def _main(base: str, adapters: list[str], with_logits: bool) -> None:
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(base.encode(), options)
    context = _context(model) if model else None
    if not context:
        return _print(base, "refused")
    _print(base, *_decode(context, with_logits))
    for path in adapters:
        adapter = llama_cpp.llama_adapter_lora_init(model, path.encode())
        if not adapter:
            _print(path, "refused")
            continue
        _set(context, [adapter])
        _print(path, *_decode(context, with_logits))
        _set(context, [])
        llama_cpp.llama_adapter_lora_free(adapter)
    return None


def _context(model: Any) -> Any:
    import llama_cpp

    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 32
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    return llama_cpp.llama_init_from_model(model, settings)


def _set(context: Any, adapters: list[Any]) -> None:
    import llama_cpp

    handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(*adapters)
    llama_cpp.llama_set_adapters_lora(context, handles, len(adapters), (ctypes.c_float * 1)(1.0))


def _decode(context: Any, with_logits: bool) -> tuple[str, list[float]]:
    """A prompt of several tokens and one more: both shapes of kernels."""
    import llama_cpp

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context)))
    values: list[float] = []
    for tokens in ([1, 5, 6, 7], [8]):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            return "refused", []
        values = llama_cpp.llama_get_logits_ith(context, -1)[:n_vocab]
        if not all(map(math.isfinite, values)):
            return "nan", []
    return "ok", values if with_logits else []


def _print(path: str, result: str, values: list[float] | None = None) -> None:
    line = {"file": Path(path).name, "result": result} | ({"logits": values} if values else {})
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    _files = [argument for argument in sys.argv[1:] if argument != "--logits"]
    _main(_files[0], _files[1:], "--logits" in sys.argv)
