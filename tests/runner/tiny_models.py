"""Tiny models of random weights, for memory kinds that the example base does not have."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_INNER, N_STATE, N_CONV, N_DT, N_LAYERS = 32, 64, 8, 4, 4, 2


def mamba(target: Path) -> Path:
    """A recurrent model over bytes."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(target, "mamba")
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(N_LAYERS)
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(N_INNER)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(N_DT)
    writer.add_layer_norm_rms_eps(1e-5)
    n_vocab = _byte_vocabulary(writer)

    def tensor(name: str, *shape: int, scale: float = 0.2) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * scale).astype(np.float32))

    tensor("token_embd.weight", n_vocab, N_EMBD, scale=1)
    tensor("output.weight", n_vocab, N_EMBD, scale=1)
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for i in range(N_LAYERS):
        block = f"blk.{i}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(N_EMBD, np.float32))
        tensor(block + "ssm_in.weight", 2 * N_INNER, N_EMBD)
        tensor(block + "ssm_conv1d.weight", N_INNER, N_CONV)
        tensor(block + "ssm_conv1d.bias", N_INNER)
        tensor(block + "ssm_x.weight", N_DT + 2 * N_STATE, N_INNER)
        tensor(block + "ssm_dt.weight", N_INNER, N_DT)
        tensor(block + "ssm_dt.bias", N_INNER)
        writer.add_tensor(block + "ssm_a", -np.exp(rng.standard_normal((N_INNER, N_STATE))).astype(np.float32))
        tensor(block + "ssm_d", N_INNER)
        tensor(block + "ssm_out.weight", N_EMBD, N_INNER)
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
