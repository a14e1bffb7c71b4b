"""PEFT adapter folders to order, for the tiny base; safetensors written byte by byte, so that bad ones can be, too."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf_files import MATRICES, N_BLOCKS

MODULES = {
    "q_proj": ("self_attn", "attn_q"),
    "k_proj": ("self_attn", "attn_k"),
    "v_proj": ("self_attn", "attn_v"),
    "o_proj": ("self_attn", "attn_output"),
    "gate_proj": ("mlp", "ffn_gate"),
    "up_proj": ("mlp", "ffn_up"),
    "down_proj": ("mlp", "ffn_down"),
}
DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4"}


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def array(self) -> Any:
        """The values, as float64."""
        if self.dtype == "BF16":
            halves = np.frombuffer(self.data, "<u2").astype(np.uint32) << 16
            return halves.view(np.float32).astype(np.float64).reshape(self.shape)
        return np.frombuffer(self.data, DTYPES[self.dtype]).astype(np.float64).reshape(self.shape)


def tensor(*shape: int, seed: str, dtype: str = "F32") -> Tensor:
    rng = random.Random(seed)
    n = int(np.prod(shape))
    values = np.array([rng.uniform(-0.3, 0.3) for _ in range(n)], dtype=np.float32)
    if dtype == "BF16":
        return Tensor(dtype, shape, (values.view(np.uint32) >> 16).astype("<u2").tobytes())
    return Tensor(dtype, shape, values.astype(DTYPES[dtype]).tobytes())


def module(block: int, name: str) -> str:
    return f"model.layers.{block}.{MODULES[name][0]}.{name}"


@dataclass
class Folder:
    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def configured(self, **changes: Any) -> Folder:
        return replace(self, config={**self.config, **changes})

    def add(self, name: str, value: Tensor) -> Folder:
        return replace(self, tensors={**self.tensors, name: value})

    def without(self, name: str) -> Folder:
        assert name in self.tensors
        return replace(self, tensors={key: value for key, value in self.tensors.items() if key != name})

    def write(self, path: Path) -> Path:
        path.mkdir(exist_ok=True)
        (path / "adapter_config.json").write_text(json.dumps(self.config))
        (path / "adapter_model.safetensors").write_bytes(self.weights())
        return path

    def weights(self) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        data = b""
        for name, value in self.tensors.items():
            offsets = [len(data), len(data) + len(value.data)]
            header[name] = {"dtype": value.dtype, "shape": value.shape, "data_offsets": offsets}
            data += value.data
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data


def peft(
    *modules: str, rank: int = 4, dtype: str = "F32", ranks: dict[str, int] | None = None, **config: Any
) -> Folder:
    """A LoRA for `tiny_base` with lora_alpha 8, on q_proj and v_proj of both blocks unless told otherwise. `ranks`: of
    modules whose rank differs, by their short names."""
    names = modules or ("q_proj", "v_proj")
    plain = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(names), "bias": "none"}
    folder = Folder({**plain, "task_type": "CAUSAL_LM", **config})
    for block in range(N_BLOCKS):
        for name in names:
            n_in, n_out = MATRICES[MODULES[name][1]]
            r = (ranks or {}).get(name, rank)
            prefix = f"base_model.model.{module(block, name)}"
            folder = folder.add(f"{prefix}.lora_A.weight", tensor(r, n_in, seed=f"{prefix}A", dtype=dtype))
            folder = folder.add(f"{prefix}.lora_B.weight", tensor(n_out, r, seed=f"{prefix}B", dtype=dtype))
    return folder
