"""A model in memory, its vocabulary, and its adapters."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from modelctl.errors import LoadFailed

N_BUCKETS = (13, 29)  # of the unordered_map in which llama.cpp keeps the adapters of a context: at first; from 14 on
_ATTR_CONTROL = 1 << 3 | 1 << 4  # LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED


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
        self.vocab = lib.llama_model_get_vocab(self._model)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        self.bos: int = lib.llama_vocab_bos(self.vocab)
        self.eos: int = lib.llama_vocab_eos(self.vocab)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self.vocab)

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        if (known := self._ends.get(token)) is None:
            known = self._ends[token] = bool(lib.llama_vocab_is_eog(self.vocab, token))
        return known

    @cached_property
    def eog(self) -> tuple[int, ...]:
        """All tokens that end a generation."""
        return tuple(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self.vocab, t))

    @cached_property
    def control(self) -> frozenset[str]:
        """The texts that the tokeniser turns into one special token each."""
        texts = (
            lib.llama_vocab_get_text(self.vocab, t)
            for t in range(self.n_vocab)
            if lib.llama_vocab_get_attr(self.vocab, t) & _ATTR_CONTROL
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
        text = lib.llama_vocab_get_text(self.vocab, token) if 0 <= token < self.n_vocab else None
        return text.decode(errors="replace") if text else ""

    def tokenize(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """Token ids. `special`: parse control tokens in the text; `bos`: begin as the model wants texts to begin."""
        raw = text.encode("utf-8", errors="replace")
        size = len(raw) + 8
        while True:
            out = (lib.llama_token * size)()
            n = lib.llama_tokenize(self.vocab, raw, len(raw), out, size, bos, special)
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
            n = lib.llama_token_to_piece(self.vocab, token, out, size, 0, special)
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

    def native_order(self, digests: Sequence[str]) -> list[str]:
        """The order in which llama.cpp adds the deltas of a mix, given as `Context.set_mix` gets it. Floats round, so
        the order is part of the result."""
        handed = list(reversed(digests))
        return [handed[i] for i in hash_order([address_of(self._adapters[d]) for d in handed])]

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
    """The order in which libstdc++'s `unordered_map` walks up to 29 pointer keys that were inserted as given: newest
    first, but next to those of the same bucket. When it grows, it inserts what it has anew, as it walks it."""
    small, large = N_BUCKETS
    indices = range(len(addresses))
    order = _walk(addresses, indices[:small], small)
    return order if len(addresses) <= small else _walk(addresses, [*order, *indices[small:]], large)


def _walk(addresses: Sequence[int], inserted: Sequence[int], n_buckets: int) -> list[int]:
    order: list[int] = []
    for i in inserted:
        mates = (at for at, j in enumerate(order) if addresses[j] % n_buckets == addresses[i] % n_buckets)
        order.insert(next(mates, 0), i)
    return order


def address_of(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0
