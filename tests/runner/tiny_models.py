"""Tiny models of random weights, for what the example base does not have, and adapters of random weights for any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from modelctl.gguf_check import read_header

N_EMBD, N_INNER, N_STATE, N_CONV, N_DT, N_LAYERS = 32, 64, 8, 4, 4, 2


class _Model:
    """A GGUF model over bytes in the making: its metadata goes to `writer`, its weights are random."""

    def __init__(self, target: Path, architecture: str, *, n_embd: int, n_ff: int, n_head: int, seed: int) -> None:
        self.n_embd = n_embd
        self.writer = gguf.GGUFWriter(target, architecture)
        self._rng = np.random.default_rng(seed)
        self.writer.add_context_length(512)
        self.writer.add_embedding_length(n_embd)
        self.writer.add_feed_forward_length(n_ff)
        self.writer.add_head_count(n_head)
        self.writer.add_block_count(N_LAYERS)
        self.writer.add_layer_norm_rms_eps(1e-5)
        n_vocab = _byte_vocabulary(self.writer)
        self.tensor("token_embd.weight", n_vocab, n_embd, scale=1)
        self.tensor("output.weight", n_vocab, n_embd, scale=1)
        self.norm("output_norm.weight")

    def random(self, *shape: int) -> npt.NDArray[np.float32]:
        return self._rng.standard_normal(shape).astype(np.float32)

    def tensor(self, name: str, *shape: int, scale: float = 0.2) -> None:
        self.writer.add_tensor(name, self.random(*shape) * np.float32(scale))

    def norm(self, name: str) -> None:
        self.writer.add_tensor(name, np.ones(self.n_embd, np.float32))


def mamba(target: Path) -> Path:
    """A recurrent model."""
    model = _Model(target, "mamba", n_embd=N_EMBD, n_ff=0, n_head=0, seed=0)
    model.writer.add_ssm_conv_kernel(N_CONV)
    model.writer.add_ssm_inner_size(N_INNER)
    model.writer.add_ssm_state_size(N_STATE)
    model.writer.add_ssm_time_step_rank(N_DT)
    for i in range(N_LAYERS):
        block = f"blk.{i}."
        model.norm(block + "attn_norm.weight")
        model.tensor(block + "ssm_in.weight", 2 * N_INNER, N_EMBD)
        model.tensor(block + "ssm_conv1d.weight", N_INNER, N_CONV)
        model.tensor(block + "ssm_conv1d.bias", N_INNER)
        model.tensor(block + "ssm_x.weight", N_DT + 2 * N_STATE, N_INNER)
        model.tensor(block + "ssm_dt.weight", N_INNER, N_DT)
        model.tensor(block + "ssm_dt.bias", N_INNER)
        model.writer.add_tensor(block + "ssm_a", -np.exp(model.random(N_INNER, N_STATE)))
        model.tensor(block + "ssm_d", N_INNER)
        model.tensor(block + "ssm_out.weight", N_EMBD, N_INNER)
    return _written(model.writer, target)


def mixture(target: Path) -> Path:
    """A llama with four experts, two of which see each token, and an output matrix of its own."""
    n_embd, n_ff, n_expert = 64, 64, 4
    model = _Model(target, "llama", n_embd=n_embd, n_ff=n_ff, n_head=4, seed=1)
    model.writer.add_head_count_kv(2)
    model.writer.add_rope_dimension_count(16)
    model.writer.add_expert_count(n_expert)
    model.writer.add_expert_used_count(2)
    for i in range(N_LAYERS):
        block = f"blk.{i}."
        model.norm(block + "attn_norm.weight")
        model.norm(block + "ffn_norm.weight")
        model.tensor(block + "attn_q.weight", n_embd, n_embd)
        model.tensor(block + "attn_k.weight", n_embd // 2, n_embd)
        model.tensor(block + "attn_v.weight", n_embd // 2, n_embd)
        model.tensor(block + "attn_output.weight", n_embd, n_embd)
        model.tensor(block + "ffn_gate_inp.weight", n_expert, n_embd)
        model.tensor(block + "ffn_gate_exps.weight", n_expert, n_ff, n_embd)
        model.tensor(block + "ffn_up_exps.weight", n_expert, n_ff, n_embd)
        model.tensor(block + "ffn_down_exps.weight", n_expert, n_embd, n_ff)
    return _written(model.writer, target)


def random_adapter(
    base: Path,
    target: Path,
    seed: int,
    *,
    modules: Sequence[str] = ("attn_q", "attn_v", "ffn_down"),
    rank: int = 16,
    alpha: float = 32.0,
    dtype: type[np.floating[Any]] = np.float16,
) -> Path:
    """An adapter for each matrix of `base` whose name has one of `modules` in it."""
    header = read_header(base)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(target, header.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)

    def tensor(name: str, *shape: int, scale: float) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * scale).astype(dtype))

    for name, found in header.tensors.items():
        if len(found.shape) < 2 or not any(f".{module}" in f".{name}" for module in modules):
            continue
        n_in, n_out, *experts = found.shape
        if name == "token_embd.weight":  # looked up, so the other way round
            tensor(f"{name}.lora_a", n_out, rank, scale=0.2)
            tensor(f"{name}.lora_b", n_in, rank, scale=0.02)
        else:
            tensor(f"{name}.lora_a", *experts, rank, n_in, scale=n_in**-0.5)
            tensor(f"{name}.lora_b", *experts, n_out, rank, scale=0.02)
    return _written(writer, target)


def _written(writer: gguf.GGUFWriter, target: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _byte_vocabulary(writer: gguf.GGUFWriter) -> int:
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return len(tokens)
