"""GGUF files to order, well-formed or not: written here byte by byte, since the gguf package refuses to write bad ones.

tiny_base().write(path)                     a llama that loads and decodes in milliseconds
tiny_adapter().put("adapter.lora.alpha", "f32", math.nan).write(path)
"""

from __future__ import annotations

import functools
import random
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

KINDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9, "u64": 10}
KINDS |= {"i64": 11, "f64": 12}
CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "B", "u64": "Q"}
CODES |= {"i64": "q", "f64": "d"}
# id, elements in a block, bytes of a block
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22)}
TYPES |= {"Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q8_1": (9, 32, 36), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110)}
TYPES |= {"Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "Q8_K": (15, 256, 292)}
TYPES |= {"IQ4_NL": (20, 32, 18), "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8)}
TYPES |= {"F64": (28, 1, 8), "BF16": (30, 1, 2), "IQ4_XS": (23, 256, 136)}

N_EMBD, N_HEAD, N_KV, N_FF, N_BLOCKS, RANK = 64, 4, 2, 256, 2, 4
N_VOCAB = 3 + 256 + 61


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


@dataclass(frozen=True)
class Key:
    """`length` overrides the element count that an array claims."""

    name: str | bytes
    kind: str
    value: Any
    element: str = ""
    length: int | None = None

    def build(self) -> bytes:
        head = string(self.name) + struct.pack("<I", KINDS[self.kind])
        if self.kind != "arr":
            return head + _scalar(self.kind, self.value)
        length = len(self.value) if self.length is None else self.length
        head += struct.pack("<IQ", KINDS[self.element], length)
        return head + b"".join(_scalar(self.element, value) for value in self.value)


def _scalar(kind: str, value: Any) -> bytes:
    return string(value) if kind == "str" else struct.pack(f"<{CODES[kind]}", value)


@dataclass(frozen=True)
class Tensor:
    """`shape` in ggml's order. `type` is a name, or a number for types that do not exist. Random data when none."""

    name: str | bytes
    shape: tuple[int, ...]
    type: str | int = "F32"
    data: bytes | None = None
    offset: int | None = None

    def bytes(self) -> bytes:
        if self.data is not None:
            return self.data
        _, block, size = TYPES[self.type] if isinstance(self.type, str) else (0, 1, 4)
        n = 1
        for length in self.shape:
            n *= length
        if n > 1 << 20:
            return b""
        return _data(self.type, n // block * size, str(self.name))


@functools.cache
def _data(kind: str | int, n_bytes: int, seed: str) -> bytes:
    """Small values; quantised blocks are a pattern of bytes that is finite in every format used here."""
    rng = random.Random(seed)
    if kind == "F32":
        return struct.pack(f"<{n_bytes // 4}f", *(rng.uniform(-0.1, 0.1) for _ in range(n_bytes // 4)))
    if kind == "F16":
        return struct.pack(f"<{n_bytes // 2}e", *(rng.uniform(-0.1, 0.1) for _ in range(n_bytes // 2)))
    if kind == "BF16":
        values = (struct.pack("<f", rng.uniform(-0.1, 0.1))[2:] for _ in range(n_bytes // 2))
        return b"".join(values)
    return bytes([0x11]) * n_bytes


@dataclass
class File:
    keys: list[Key] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32

    def put(self, name: str, kind: str, value: Any, element: str = "", length: int | None = None) -> File:
        """With this key, instead of the one of that name."""
        key = Key(name, kind, value, element, length)
        at = next((i for i, old in enumerate(self.keys) if old.name == name), len(self.keys))
        return replace(self, keys=[*self.keys[:at], key, *self.keys[at + 1 :]])

    def drop(self, name: str) -> File:
        return replace(self, keys=[key for key in self.keys if key.name != name])

    def tensor(self, name: str, new: str | None = None, **changes: Any) -> File:
        """With that tensor changed, and renamed to `new`; its data is made afresh unless given."""
        assert any(tensor.name == name for tensor in self.tensors), name
        changed = [
            replace(t, name=t.name if new is None else new, **changes) if t.name == name else t for t in self.tensors
        ]
        return replace(self, tensors=changed)

    def add(self, *tensors: Tensor) -> File:
        return replace(self, tensors=[*self.tensors, *tensors])

    def without(self, *names: str) -> File:
        return replace(self, tensors=[tensor for tensor in self.tensors if tensor.name not in names])

    def build(self) -> bytes:
        counts = (self.n_tensors, len(self.tensors)), (self.n_keys, len(self.keys))
        n_tensors, n_keys = (actual if claimed is None else claimed for claimed, actual in counts)
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(key.build() for key in self.keys)
        infos, data = b"", b""
        for tensor in self.tensors:
            kind = tensor.type if isinstance(tensor.type, int) else TYPES[tensor.type][0]
            offset = len(data) if tensor.offset is None else tensor.offset
            infos += string(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            infos += struct.pack("<IQ", kind, offset)
            data += self._padded(tensor.bytes())
        return self._padded(head + infos) + data

    def _padded(self, data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % self.alignment)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


def tiny_base(*, architecture: str = "llama", tied: bool = False, weights: str = "F32") -> File:
    """2 blocks, 64 wide, 4 heads that share 2 key/value heads, and a byte vocabulary of 320 tokens."""
    a = architecture
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(f"▁w{i}" for i in range(61))]
    keys = [
        Key("general.architecture", "str", a),
        Key("general.type", "str", "model"),
        Key("general.name", "str", "tiny"),
        Key(f"{a}.block_count", "u32", N_BLOCKS),
        Key(f"{a}.context_length", "u32", 128),
        Key(f"{a}.embedding_length", "u32", N_EMBD),
        Key(f"{a}.feed_forward_length", "u32", N_FF),
        Key(f"{a}.attention.head_count", "u32", N_HEAD),
        Key(f"{a}.attention.head_count_kv", "u32", N_KV),
        Key(f"{a}.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        Key(f"{a}.rope.dimension_count", "u32", N_EMBD // N_HEAD),
        Key("tokenizer.ggml.model", "str", "llama"),
        Key("tokenizer.ggml.tokens", "arr", tokens, "str"),
        Key("tokenizer.ggml.scores", "arr", [0.0] * N_VOCAB, "f32"),
        Key("tokenizer.ggml.token_type", "arr", [2, 3, 3, *([6] * 256), *([1] * 61)], "i32"),
        Key("tokenizer.ggml.bos_token_id", "u32", 1),
        Key("tokenizer.ggml.eos_token_id", "u32", 2),
        Key("tokenizer.chat_template", "str", "{{ messages[0].content }}"),
    ]
    outer = [Tensor("token_embd.weight", (N_EMBD, N_VOCAB), weights), Tensor("output_norm.weight", (N_EMBD,))]
    if not tied:
        outer.append(Tensor("output.weight", (N_EMBD, N_VOCAB), weights))
    blocks = [tensor for block in range(N_BLOCKS) for tensor in _block(block, weights)]
    return File(keys, outer + blocks)


MATRICES = {
    "attn_q": (N_EMBD, N_EMBD),
    "attn_k": (N_EMBD, N_EMBD // N_HEAD * N_KV),
    "attn_v": (N_EMBD, N_EMBD // N_HEAD * N_KV),
    "attn_output": (N_EMBD, N_EMBD),
    "ffn_gate": (N_EMBD, N_FF),
    "ffn_up": (N_EMBD, N_FF),
    "ffn_down": (N_FF, N_EMBD),
}


def _block(block: int, weights: str) -> list[Tensor]:
    matrices = [Tensor(f"blk.{block}.{name}.weight", shape, weights) for name, shape in MATRICES.items()]
    return [*matrices, *(Tensor(f"blk.{block}.{name}_norm.weight", (N_EMBD,)) for name in ("attn", "ffn"))]


def pair(target: str, n_in: int, n_out: int, rank: int = RANK, types: tuple[str, str] = ("F32", "F32")) -> list[Tensor]:
    """lora_a and lora_b of one matrix."""
    return [
        Tensor(f"{target}.lora_a", (n_in, rank), types[0]),
        Tensor(f"{target}.lora_b", (rank, n_out), types[1]),
    ]


def tiny_adapter(*modules: str, architecture: str = "llama") -> File:
    """A LoRA of rank 4 for `tiny_base`, on attn_q and attn_v of both blocks unless told otherwise."""
    keys = [
        Key("general.architecture", "str", architecture),
        Key("general.type", "str", "adapter"),
        Key("adapter.type", "str", "lora"),
        Key("adapter.lora.alpha", "f32", 8.0),
    ]
    names = [
        (f"blk.{b}.{module}.weight", module) for b in range(N_BLOCKS) for module in modules or ("attn_q", "attn_v")
    ]
    return File(keys, [tensor for name, module in names for tensor in pair(name, *MATRICES[module])])
