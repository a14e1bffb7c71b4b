"""Greedy answers of a base under each adapter, through llama.cpp's own calls, in a child process.

python answers.py BASE PROMPT N_TOKENS ADAPTER...     one JSON line an adapter; "-" is the base alone
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def answers(base: Path, prompt: str, n_tokens: int, adapters: list[Path | str]) -> list[str]:
    command = [sys.executable, __file__, str(base), prompt, str(n_tokens), *map(str, adapters)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line) for line in child.stdout.splitlines() if line.startswith('"')]


def _main(base: str, prompt: str, n_tokens: int, adapters: list[str]) -> None:
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    model = llama_cpp.llama_model_load_from_file(base.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = 256
    settings.n_threads = settings.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, settings)
    for path in adapters:
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)()
        if path != "-":
            handles[0] = llama_cpp.llama_adapter_lora_init(model, path.encode())
            assert handles[0], path  # a NULL is a pointer object that is falsy, never None
        llama_cpp.llama_set_adapters_lora(context, handles, path != "-", (ctypes.c_float * 1)(1.0))
        print(json.dumps(_generate(context, model, prompt, n_tokens)), flush=True)


def _generate(context: Any, model: Any, prompt: str, n_tokens: int) -> str:
    import llama_cpp

    vocab = llama_cpp.llama_model_get_vocab(model)
    text = prompt.encode()
    tokens = (llama_cpp.llama_token * 200)()
    n = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, len(tokens), False, True)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    sampler = llama_cpp.llama_sampler_init_greedy()
    batch, answer, piece = llama_cpp.llama_batch_get_one(tokens, n), b"", ctypes.create_string_buffer(64)
    for _ in range(n_tokens):
        assert llama_cpp.llama_decode(context, batch) == 0
        token = llama_cpp.llama_sampler_sample(sampler, context, -1)
        if llama_cpp.llama_vocab_is_eog(vocab, token):
            break
        length = llama_cpp.llama_token_to_piece(vocab, token, piece, len(piece), 0, False)
        answer += piece.raw[:length]
        batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
    return answer.decode(errors="replace")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
