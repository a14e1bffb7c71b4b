"""The only module that imports llama_cpp. Every native handle has one owner and a `close()`.

Threads: `Base.tokenize` and `Base.piece` only read and may be called from any thread; everything else belongs to the
thread that decodes (changing the adapters from another one during a decode ends in SIGBUS).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
from llama_cpp._ggml import libggml

from modelctl.errors import LoadFailed
from modelctl.runner.watch import Watch

SEQ_MAX = 256  # llama.cpp's own limit on sequences in one context
_ATTR_CONTROL = 1 << 3 | 1 << 4  # LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED
_LEVELS = {2: "info", 3: "warn", 4: "error"}
_log_level = 3

EvalCallback = Callable[[int, bool, object], bool]  # (address of a node, "do you want it?", unused)
_N_OPS = 64  # of ggml's operations, those that are looked at for a name
N_BUCKETS = 13  # of a small unordered_map, in which llama.cpp keeps the adapters of a context


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


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


# Called at each step, with addresses as numbers: ctypes takes longer to cast a pointer than these to do their work.
_get_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", lib._lib))
_set_eval_callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("ggml_backend_sched_set_eval_callback", libggml)
)


def gomp_parallel() -> Callable[..., Any] | None:
    """GNU OpenMP's call that runs a team of threads, where llama.cpp was built with that."""
    is_llvm = hasattr(libggml, "__kmpc_fork_call")  # has a call of that name too
    return None if is_llvm else getattr(libggml, "GOMP_parallel", None)


def can_offload() -> bool:
    """Whether the installed llama.cpp was built with a GPU backend that it can use here."""
    return bool(lib.llama_supports_gpu_offload())


class Base:
    """One GGUF model: weights, vocabulary and the adapters attached to it."""

    def __init__(
        self, path: str, *, n_gpu_layers: int = -1, main_gpu: int = 0, use_mmap: bool = True, vocab_only: bool = False
    ) -> None:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0x7FFFFFFF if n_gpu_layers < 0 else n_gpu_layers
        params.main_gpu = main_gpu
        params.use_mmap = use_mmap
        params.vocab_only = vocab_only
        self._adapters: dict[str, Any] = {}
        self._model = lib.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise LoadFailed(f"llama.cpp could not load the base {Path(path).name}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self.bos: int = lib.llama_vocab_bos(self._vocab)
        self.eos: int = lib.llama_vocab_eos(self._vocab)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self._vocab)

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        if (known := self._ends.get(token)) is None:
            known = self._ends[token] = bool(lib.llama_vocab_is_eog(self._vocab, token))
        return known

    @cached_property
    def eog(self) -> tuple[int, ...]:
        """All tokens that end a generation."""
        return tuple(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self._vocab, t))

    @cached_property
    def control(self) -> frozenset[str]:
        """The texts that the tokeniser turns into one special token each."""
        texts = (
            lib.llama_vocab_get_text(self._vocab, t)
            for t in range(self.n_vocab)
            if lib.llama_vocab_get_attr(self._vocab, t) & _ATTR_CONTROL
        )
        return frozenset(text.decode(errors="replace") for text in texts if text)

    @property
    def handle(self) -> Any:
        return self._model

    @property
    def n_ctx_train(self) -> int:
        return int(lib.llama_model_n_ctx_train(self._model))

    @property
    def n_params(self) -> int:
        return int(lib.llama_model_n_params(self._model))

    @property
    def n_bytes(self) -> int:
        return int(lib.llama_model_size(self._model))

    @property
    def can_cut(self) -> bool:
        """Whether the tail of a sequence's memory can be removed; recurrent state cannot."""
        return not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model))

    @property
    def cell_bytes(self) -> int:
        """Bytes of f16 memory for one token, in a model whose layers are all alike."""
        m = self._model
        head = lib.llama_model_n_embd(m) // max(1, lib.llama_model_n_head(m))
        return int(lib.llama_model_n_layer(m) * lib.llama_model_n_head_kv(m) * head * 2 * 2)

    @property
    def has_pooling(self) -> bool:
        """Whether the GGUF says how token embeddings become one; embedding models do."""
        key = f"{self._meta('general.architecture')}.pooling_type"
        return self._meta(key) not in ("", "0")

    def _meta(self, key: str) -> str:
        out = ctypes.create_string_buffer(256)
        n = lib.llama_model_meta_val_str(self._model, key.encode(), out, len(out))
        return out.value.decode(errors="replace") if n >= 0 else ""

    @property
    def chat_template(self) -> str | None:
        text = lib.llama_model_chat_template(self._model, None)
        return text.decode(errors="replace") if text else None

    def text_of(self, token: int) -> str:
        """The vocabulary's own text of a token, e.g. "<|im_end|>"; "" when there is no such token."""
        text = lib.llama_vocab_get_text(self._vocab, token) if 0 <= token < self.n_vocab else None
        return text.decode(errors="replace") if text else ""

    def tokenize(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """Token ids. `special`: parse control tokens in the text; `bos`: begin as the model wants texts to begin."""
        raw = text.encode("utf-8", errors="replace")
        size = len(raw) + 8
        while True:
            out = (lib.llama_token * size)()
            n = lib.llama_tokenize(self._vocab, raw, len(raw), out, size, bos, special)
            if n >= 0:
                return list(out[:n])
            size = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token adds to the text: perhaps part of a character, empty for control tokens."""
        if not special and (known := self._pieces.get(token)) is not None:
            return known
        size = 64
        while True:
            out = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self._vocab, token, out, size, 0, special)
            if n >= 0:
                break
            size = -n
        if not special:
            self._pieces[token] = out.raw[:n]
        return out.raw[:n]

    def attach(self, digest: str, path: str) -> None:
        """Load an adapter; it computes nothing until a mix names it."""
        adapter = lib.llama_adapter_lora_init(self._model, path.encode())
        if not adapter:  # a NULL from ctypes is falsy but not None
            raise LoadFailed(f"llama.cpp could not load the adapter {digest[:19]}; its log says why")
        self._adapters[digest] = adapter

    def adapter(self, digest: str) -> Any:
        return self._adapters[digest]

    def bucket(self, digest: str) -> int:
        """See `hash_order`."""
        return _address(self._adapters[digest]) % N_BUCKETS

    def native_order(self, digests: Sequence[str]) -> list[str]:
        """The order in which llama.cpp adds the deltas of a mix, given as `Context.set_mix` gets it. Floats round, so
        the order is part of the result."""
        handed = list(reversed(digests))
        return [handed[i] for i in hash_order([_address(self._adapters[d]) for d in handed])]

    def detach(self, digest: str) -> None:
        """Free one adapter. No context may have it in its mix."""
        lib.llama_adapter_lora_free(self._adapters.pop(digest))

    @property
    def attached(self) -> frozenset[str]:
        return frozenset(self._adapters)

    def close(self) -> None:
        """After every Context on this base is closed: adapters first, an adapter outliving its model is a crash."""
        for digest in list(self._adapters):
            self.detach(digest)
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None


def hash_order(addresses: Sequence[int]) -> list[int]:
    """The order in which libstdc++'s `unordered_map` walks up to `N_BUCKETS` pointer keys that were inserted as given:
    newest first, but next to those of the same bucket."""
    order: list[int] = []
    for i, address in enumerate(addresses):
        mates = (at for at, j in enumerate(order) if addresses[j] % N_BUCKETS == address % N_BUCKETS)
        order.insert(next(mates, 0), i)
    return order


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
            self._watch = Watch(_address(self._ctx), _address(self._callback), _set_eval_callback)
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
    """A llama_batch over numpy arrays: filled with a few slice stores however many rows there are."""

    def __init__(self, n_rows: int) -> None:
        self._token = np.zeros(n_rows, np.int32)
        self._pos = np.zeros(n_rows, np.int32)
        self._seq = np.zeros(n_rows, np.int32)
        self._n_seq = np.ones(n_rows, np.int32)
        self._wanted = np.zeros(n_rows, np.int8)
        self._seq_pointers = self._seq.ctypes.data + 4 * np.arange(n_rows, dtype=np.uint64)
        self.native = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self._token, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._pos, ctypes.c_int32),
            n_seq_id=_pointer(self._n_seq, ctypes.c_int32),
            seq_id=_pointer(self._seq_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def fill(self, tokens: Sequence[int], positions: Sequence[int], seqs: Sequence[int], wanted: Sequence[int]) -> None:
        n = len(tokens)
        self._token[:n] = tokens
        self._pos[:n] = positions
        self._seq[:n] = seqs
        self._wanted[:n] = wanted
        self.native.n_tokens = n


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def schema_to_gbnf(schema: str) -> str:
    """A JSON schema's text as a GBNF grammar. Leaves by all kinds of exceptions when the schema is odd."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    return str(json_schema_to_gbnf(schema))


class Sampler:
    """A chain of llama.cpp's samplers, with the state (penalties, grammar, random numbers) of one sequence."""

    def __init__(self, base: Base, chain: Iterable[tuple[Any, ...]], grammar: str = "") -> None:
        """`chain`: (name, arguments...) pairs, as `sampling.chain` makes them. `grammar`: GBNF that binds the choice.
        Raises `LoadFailed` where llama.cpp refuses one."""
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._grammar: Any = None
        self._chain = lib.llama_sampler_chain_init(params)
        for name, *arguments in chain:
            lib.llama_sampler_chain_add(self._chain, self._made(name, _SAMPLERS[name](base, *arguments)))
        if grammar:
            text = grammar.encode()
            self._grammar = self._made("grammar", lib.llama_sampler_init_grammar(base._vocab, text, b"root"))

    def _made(self, name: str, sampler: Any) -> Any:
        if not sampler:
            self.close()
            raise LoadFailed(f"llama.cpp refused the {name} sampler")
        return sampler

    def sample(self, context: Context, row: int, logits: npt.NDArray[np.float32]) -> int:
        """The next token from the logits of batch row `row`, accepted into the chain's state."""
        if self._grammar is None:
            return int(lib.llama_sampler_sample(self._chain, context.handle, row))
        token = self._choose(logits, bound=False)
        if not self._allows(token):  # asking the grammar about one token is cheap, about all of them is not
            token = self._choose(logits, bound=True)
        lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, logits: npt.NDArray[np.float32], *, bound: bool) -> int:
        candidates = np.empty(len(logits), _CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        array = _candidate_array(candidates)
        if bound:
            lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = ctypes.cast(array.data, ctypes.POINTER(lib.llama_token_data))[array.selected]
        return int(chosen.id)

    def _allows(self, token: int) -> bool:
        candidate = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(_candidate_array(candidate)))
        return bool(np.isfinite(candidate["logit"][0]))

    def accept(self, token: int) -> None:
        """A token of the prompt, for the penalties."""
        lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler:
                lib.llama_sampler_free(sampler)
        self._chain = self._grammar = None


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def _candidate_array(candidates: npt.NDArray[Any]) -> Any:
    data = _pointer(candidates, lib.llama_token_data)
    return lib.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)


def _logit_bias(base: Base, biases: dict[int, float]) -> Any:
    array = (lib.llama_logit_bias * len(biases))(*(lib.llama_logit_bias(t, b) for t, b in biases.items()))
    return lib.llama_sampler_init_logit_bias(base.n_vocab, len(biases), array)


def _dry(base: Base, multiplier: float, growth: float, allowed: int) -> Any:
    """With llama.cpp's usual sequence breakers, over the whole context."""
    breakers = (ctypes.c_char_p * 4)(b"\n", b":", b'"', b"*")
    return lib.llama_sampler_init_dry(base._vocab, multiplier, growth, allowed, base.n_ctx_train, breakers, 4)


_SAMPLERS: dict[str, Callable[..., Any]] = {
    "greedy": lambda base: lib.llama_sampler_init_greedy(),
    "dist": lambda base, seed: lib.llama_sampler_init_dist(seed),
    "temperature": lambda base, t: lib.llama_sampler_init_temp(t),
    "top_k": lambda base, k: lib.llama_sampler_init_top_k(k),
    "top_p": lambda base, p: lib.llama_sampler_init_top_p(p, 1),
    "min_p": lambda base, p: lib.llama_sampler_init_min_p(p, 1),
    "typical_p": lambda base, p: lib.llama_sampler_init_typical(p, 1),
    "mirostat": lambda base, seed, tau, eta: lib.llama_sampler_init_mirostat(base.n_vocab, seed, tau, eta, 100),
    "mirostat_v2": lambda base, seed, tau, eta: lib.llama_sampler_init_mirostat_v2(seed, tau, eta),
    "penalties": lambda base, last_n, repeat, frequency, presence: lib.llama_sampler_init_penalties(
        base.n_vocab, last_n if last_n >= 0 else base.n_ctx_train, repeat, frequency, presence
    ),
    "dry": _dry,
    "xtc": lambda base, probability, threshold, seed: lib.llama_sampler_init_xtc(probability, threshold, 1, seed),
    "logit_bias": _logit_bias,
}
