"""Where a model computes: KV cells, compute buffers, batches."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
from llama_cpp._ggml import libggml

from modelctl.errors import LoadFailed
from modelctl.runner.llama.base import Base, address_of
from modelctl.runner.llama.watch import Watch

SEQ_MAX = 256  # llama.cpp's own limit on sequences in one context

EvalCallback = Callable[[int, bool, object], bool]  # (address of a node, "do you want it?", unused)

# Called at each step, with addresses as numbers: ctypes takes longer to cast a pointer than these to do their work.
_get_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", lib._lib))
_set_eval_callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("ggml_backend_sched_set_eval_callback", libggml)
)


class Context:
    """KV cells and compute buffers on one Base. One batch at a time, under one set of adapters."""

    def __init__(
        self,
        base: Base,
        *,
        n_cells: int,
        n_seq: int,
        n_batch: int,
        n_threads: int,
        unified: bool = True,
        embeddings: bool = False,
        callback: EvalCallback | None = None,
    ) -> None:
        """`unified`: sequences share cells; otherwise each has n_cells / n_seq of its own. `embeddings`: made for
        `embedding` instead of `logits`. `callback`: see ggml_backend_sched_eval_callback; off until `watch(True)`."""
        params = lib.llama_context_default_params()
        params.n_ctx = n_cells
        params.n_batch = params.n_ubatch = n_batch  # one ubatch a batch, so a batch that finds no cells leaves no trace
        params.n_seq_max = n_seq
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = unified
        params.swa_full = True  # sliding-window caches keep everything, so prefixes can be cut and shared
        params.no_perf = True
        params.embeddings = embeddings
        if embeddings and not base.has_pooling:
            params.pooling_type = lib.LLAMA_POOLING_TYPE_LAST  # what generative models are taken for, here as in Ollama
        if callback is not None:
            self._callback = lib.ggml_backend_sched_eval_callback(callback)  # kept: a collected one would segfault
            params.cb_eval = self._callback
        self._base = base
        self._ctx = lib.llama_init_from_model(base.handle, params)
        if not self._ctx:
            raise LoadFailed(f"llama.cpp could not make a context of {n_cells} cells", hint="try a smaller num_ctx")
        self._memory = lib.llama_get_memory(self._ctx)
        self._mix: tuple[tuple[str, float], ...] = ()
        self._batch = _Batch(n_batch)
        self._n_threads = n_threads
        self._logits_at = (0, 0)  # address and rows of the view that is kept: it lies in one place for long
        self._logits = np.empty((0, base.n_vocab), np.float32)
        self.unified = unified
        self.n_cells = int(lib.llama_n_ctx(self._ctx))
        self.n_batch = n_batch
        self._watch: Watch | None = None
        if callback is not None:
            self._watch = Watch(address_of(self._ctx), address_of(self._callback), _set_eval_callback)
        self.n_reserves = 0  # each real change of adapters rebuilds llama.cpp's graphs

    @property
    def handle(self) -> Any:
        return self._ctx

    @property
    def can_watch(self) -> bool:
        return self._watch is not None and self._watch.works

    def watch(self, on: bool) -> None:
        """See `Watch.switch`."""
        if self._watch is not None:
            self._watch.switch(on)

    def ask(self, on: bool) -> None:
        """See `Watch.ask`."""
        if self._watch is not None:
            self._watch.ask(on)

    def set_mix(self, scales: tuple[tuple[str, float], ...]) -> None:
        """Adapters and scales for the decodes that follow; the same again costs nothing."""
        if scales == self._mix:
            return
        n = len(scales)
        adapters = (lib.llama_adapter_lora_p_ctypes * max(n, 1))(*(self._base.adapter(d) for d, _ in reversed(scales)))
        values = (ctypes.c_float * max(n, 1))(*(s for _, s in reversed(scales)))
        if lib.llama_set_adapters_lora(self._ctx, adapters, n, values) != 0:
            raise LoadFailed("llama.cpp refused the adapters of this mix")
        self._mix = scales
        if self._watch is not None:
            self._watch.adapters_changed()
        self.n_reserves += 1

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], seqs: Sequence[int], wanted: Sequence[int]
    ) -> bool:
        """Run one batch of at most n_batch rows; `wanted[i]`: row i's logits are. False: no free cells, no change."""
        self._batch.fill(tokens, positions, seqs, wanted)
        result = lib.llama_decode(self._ctx, self._batch.native)
        if self._watch is not None:
            self._watch.decoded()
        if result == 1:
            return False
        if result != 0:
            raise LoadFailed(f"llama.cpp failed to decode (code {result})")
        return True

    def logits(self, n_outputs: int) -> npt.NDArray[np.float32]:
        """[n_outputs, n_vocab], in the order of the wanted rows; a view that the next decode overwrites."""
        address = _get_logits(self._ctx)
        if (address, n_outputs) != self._logits_at:
            self._logits_at = (address, n_outputs)
            data = (ctypes.c_float * self._base.n_vocab * n_outputs).from_address(address)
            self._logits = np.ctypeslib.as_array(data)
        return self._logits

    def embedding(self, seq: int) -> npt.NDArray[np.float32]:
        """[n_embd], the pooled embedding of a sequence in the last batch, L2 norm 1."""
        n = int(lib.llama_model_n_embd(self._base.handle))
        vector = np.ctypeslib.as_array(lib.llama_get_embeddings_seq(self._ctx, seq), shape=(n,)).astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def cut(self, seq: int, start: int) -> bool:
        """Forget `seq` from position `start` on. False where the model's memory cannot be cut there."""
        return bool(lib.llama_memory_seq_rm(self._memory, seq, start, -1))

    def share(self, source: int, target: int, end: int) -> None:
        """Give `target`, which is empty, the first `end` positions of `source`. Shared cells are not copied; where each
        sequence has its own, all of them are, at the next decode."""
        if self.unified:
            lib.llama_memory_seq_cp(self._memory, source, target, 0, end)
        else:
            lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.cut(target, end)

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, False)

    @property
    def n_kv_bytes(self) -> int:
        return self.n_cells * self._base.cell_bytes

    def set_threads(self, n: int) -> None:
        if n != self._n_threads:
            self._n_threads = n
            lib.llama_set_n_threads(self._ctx, n, n)

    def close(self) -> None:
        if self._ctx:
            lib.llama_free(self._ctx)
            self._ctx = None


class _Batch:
    """A llama_batch over memory of ours, filled with a few calls however many rows there are. numpy, which would do as
    well, looks at every number's type first."""

    def __init__(self, n_rows: int) -> None:
        self._token, self._pos, self._seq, self._n_seq = (bytearray(4 * n_rows) for _ in range(4))
        self._wanted = bytearray(n_rows)
        _ints(n_rows).pack_into(self._n_seq, 0, *[1] * n_rows)
        start = _address(self._seq)
        self._seq_pointers = (ctypes.c_uint64 * n_rows)(*range(start, start + 4 * n_rows, 4))
        int32s, pointers = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        self.native = lib.llama_batch(
            n_tokens=0,
            token=ctypes.cast(_address(self._token), int32s),
            embd=None,
            pos=ctypes.cast(_address(self._pos), int32s),
            n_seq_id=ctypes.cast(_address(self._n_seq), int32s),
            seq_id=ctypes.cast(self._seq_pointers, pointers),
            logits=ctypes.cast(_address(self._wanted), ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, tokens: Sequence[int], positions: Sequence[int], seqs: Sequence[int], wanted: Sequence[int]) -> None:
        n = len(tokens)
        ints = _ints(n)
        ints.pack_into(self._token, 0, *tokens)
        ints.pack_into(self._pos, 0, *positions)
        ints.pack_into(self._seq, 0, *seqs)
        self._wanted[:n] = bytes(wanted)
        self.native.n_tokens = n


@lru_cache(maxsize=64)
def _ints(n: int) -> struct.Struct:
    return struct.Struct(f"{n}i")


def _address(memory: bytearray) -> int:
    """Where it lies, as long as its length stays."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
