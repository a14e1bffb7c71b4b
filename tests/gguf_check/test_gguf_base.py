"""Bases that end llama.cpp's process, or cannot be what FROM means: refused, with the reason.

llama.cpp dies on those marked "dies".
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import N_EMBD, N_VOCAB, File, Tensor, tiny_adapter, tiny_base
from native import results

from modelctl.gguf_check import BaseInfo, InvalidGGUF, check_base, read_header

GOOD = tiny_base()
Q = "blk.0.attn_q.weight"
TOKENS = "tokenizer.ggml.tokens"
WORDS = next(key.value for key in GOOD.keys if key.name == TOKENS)


def word(text: str, at: int) -> File:
    return GOOD.put(TOKENS, "arr", [*WORDS[:at], text, *WORDS[at + 1 :]], "str")


def number(name: str, value: int) -> File:
    return GOOD.put(f"llama.{name}", "u32", value)


def real(name: str, value: float) -> File:
    return GOOD.put(f"llama.{name}", "f32", value)


def mixed(n_experts: int, n_used: int) -> File:
    return number("expert_count", n_experts).put("llama.expert_used_count", "u32", n_used)


MALFORMED: dict[str, tuple[File, str]] = {
    # what FROM does not take
    "an adapter": (tiny_adapter(), "is a LoRA adapter; FROM needs a base model"),
    "a projector": (GOOD.put("general.type", "str", "mmproj"), "has general.type 'mmproj'; expected 'model'"),
    "an old projector": (
        GOOD.put("general.architecture", "str", "clip"),
        "is an image projector (architecture 'clip'); FROM needs a language model",
    ),
    "a part": (GOOD.put("split.count", "u16", 3), "is one of 3 parts of a split model; expected a whole one"),
    "no tensors": (replace(GOOD, tensors=[]), "holds no tensors; expected a model with its weights"),
    "no architecture": (
        GOOD.drop("general.architecture"),
        "metadata 'general.architecture' is missing; expected the model's architecture",
    ),
    "type of another type": (
        GOOD.put("general.type", "u32", 1),
        "metadata 'general.type' must be a string, found UINT32",
    ),
    "architecture of another type": (
        GOOD.put("general.architecture", "u32", 1),
        "metadata 'general.architecture' must be a string, found UINT32",
    ),
    # sizes
    "no blocks, dies": (number("block_count", 0), "metadata 'llama.block_count' must be from 1 to 512, found 0"),
    "600 blocks, dies": (number("block_count", 600), "metadata 'llama.block_count' must be from 1 to 512, found 600"),
    "2^31 blocks, dies": (
        number("block_count", 1 << 31),
        "metadata 'llama.block_count' must be from 1 to 512, found 2147483648",
    ),
    "too few blocks": (number("block_count", 1), "has tensors for block 1, but 'llama.block_count' is 1"),
    "block count missing": (
        GOOD.drop("llama.block_count"),
        "metadata 'llama.block_count' is missing; expected a UINT32",
    ),
    "block count of another type": (
        GOOD.put("llama.block_count", "u64", 2),
        "metadata 'llama.block_count' must be a UINT32, found UINT64",
    ),
    "embedding 0": (
        number("embedding_length", 0),
        "metadata 'llama.embedding_length' must be from 1 to 1048576, found 0",
    ),
    "context 0": (
        number("context_length", 0),
        "metadata 'llama.context_length' must be from 1 to 2147483647, found 0",
    ),
    "no heads": (number("attention.head_count", 0), "metadata 'llama.attention.head_count' must be 1 or more"),
    "no heads in any block": (
        GOOD.put("llama.attention.head_count", "arr", [0, 0], "u32"),
        "metadata 'llama.attention.head_count' must be 1 or more",
    ),
    "heads missing": (
        GOOD.drop("llama.attention.head_count"),
        "metadata 'llama.attention.head_count' must be 1 or more",
    ),
    "heads below 0": (
        GOOD.put("llama.attention.head_count", "arr", [-4, 4], "i32"),
        "metadata 'llama.attention.head_count' must be 1 or more",
    ),
    "heads of another type": (
        GOOD.put("llama.attention.head_count", "arr", ["4", "4"], "str"),
        "metadata 'llama.attention.head_count' must hold 32-bit integers, found STRING",
    ),
    "heads for too many blocks": (
        GOOD.put("llama.attention.head_count", "arr", [4] * 513, "u32"),
        "metadata 'llama.attention.head_count' has 513 elements; the limit is 512",
    ),
    "no key/value heads": (
        number("attention.head_count_kv", 0),
        "metadata 'llama.attention.head_count_kv' must be 1 or more",
    ),
    "uneven key/value heads": (
        number("attention.head_count_kv", 3),
        "4 attention heads cannot share 3 key/value heads evenly",
    ),
    "too many experts, dies": (
        mixed(1_000_000, 2),
        "metadata 'llama.expert_count' must be at most 1024, found 1000000",
    ),
    "no experts used, dies": (number("expert_count", 8), "uses 0 of 8 experts at a time; expected 1 to 8"),
    "more experts used than there are, dies": (mixed(2, 3), "uses 3 of 2 experts at a time; expected 1 to 2"),
    "unknown rope scaling, dies": (
        GOOD.put("llama.rope.scaling.type", "str", "cubic"),
        "has the unknown rope scaling 'cubic'; expected one of none, linear, yarn, longrope",
    ),
    "empty rope scaling, dies": (
        GOOD.put("llama.rope.scaling.type", "str", ""),
        "has the unknown rope scaling ''; expected one of none, linear, yarn, longrope",
    ),
    "epsilon NaN, dies": (
        real("attention.layer_norm_rms_epsilon", math.nan),
        "metadata 'llama.attention.layer_norm_rms_epsilon' must be from 0 to 1, found nan",
    ),
    "epsilon below 0, dies": (
        real("attention.layer_norm_rms_epsilon", -1.0),
        "metadata 'llama.attention.layer_norm_rms_epsilon' must be from 0 to 1, found -1",
    ),
    "rope base 0": (real("rope.freq_base", 0.0), "metadata 'llama.rope.freq_base' must be from 1 to 1e+30, found 0"),
    "rope factor NaN": (
        real("rope.scaling.factor", math.nan),
        "metadata 'llama.rope.scaling.factor' must be from 1e-06 to 1e+06, found nan",
    ),
    "any parameter NaN": (
        real("rope.scaling.attn_factor", math.nan),
        "metadata 'llama.rope.scaling.attn_factor' must be finite, found nan",
    ),
    # tensors
    "norm of I32, dies": (
        GOOD.tensor("blk.0.attn_norm.weight", type="I32"),
        "tensor 'blk.0.attn_norm.weight' has type I32; expected F32",
    ),
    "norm of F16, dies": (
        GOOD.tensor("output_norm.weight", type="F16"),
        "tensor 'output_norm.weight' has type F16; expected F32",
    ),
    "bias of F16, dies": (
        GOOD.add(Tensor("blk.0.attn_q.bias", (N_EMBD,), "F16")),
        "tensor 'blk.0.attn_q.bias' has type F16; expected F32",
    ),
    "embedding of I8, dies": (
        GOOD.tensor("token_embd.weight", type="I8"),
        "tensor 'token_embd.weight' has type I8; expected a float or quantised type",
    ),
    "attention of I16, dies": (
        GOOD.tensor(Q, type="I16"),
        f"tensor '{Q}' has type I16; expected a float or quantised type",
    ),
    "attention of F64, dies": (
        GOOD.tensor(Q, type="F64"),
        f"tensor '{Q}' has type F64; expected a float or quantised type",
    ),
    "alignment 2, dies": (
        replace(GOOD.put("general.alignment", "u32", 2), alignment=2),
        "has general.alignment 2; llama.cpp maps bases that have 32 or a multiple",
    ),
    # vocabulary
    "duplicate token, dies": (word("<s>", 319), "the vocabulary has 2 tokens b'<s>'; every token must be unique"),
    "no vocabulary": (GOOD.drop(TOKENS), f"metadata '{TOKENS}' must be an array of strings, the vocabulary"),
    "empty vocabulary": (
        GOOD.put(TOKENS, "arr", [], "str"),
        f"metadata '{TOKENS}' must be an array of strings, the vocabulary",
    ),
    "vocabulary of numbers": (
        GOOD.put(TOKENS, "arr", [1] * N_VOCAB, "u32"),
        f"metadata '{TOKENS}' must be an array of strings, the vocabulary",
    ),
    "vocabulary no array": (
        GOOD.put(TOKENS, "str", "a b c"),
        f"metadata '{TOKENS}' must be an array of strings, the vocabulary",
    ),
    "narrow scores": (
        GOOD.put("tokenizer.ggml.scores", "arr", [0] * N_VOCAB, "u8"),
        "metadata 'tokenizer.ggml.scores' must be an array of FLOAT32 or INT32, found UINT8",
    ),
    "few scores": (
        GOOD.put("tokenizer.ggml.scores", "arr", [0.0] * 7, "f32"),
        f"metadata 'tokenizer.ggml.scores' has 7 elements for a vocabulary of {N_VOCAB}",
    ),
    "narrow token types": (
        GOOD.put("tokenizer.ggml.token_type", "arr", [1] * N_VOCAB, "i16"),
        "metadata 'tokenizer.ggml.token_type' must be an array of INT32, found INT16",
    ),
    "token types no array": (
        GOOD.put("tokenizer.ggml.token_type", "i32", 1),
        "metadata 'tokenizer.ggml.token_type' must be an array of INT32, found INT32",
    ),
    "few token types": (
        GOOD.put("tokenizer.ggml.token_type", "arr", [1] * 7, "i32"),
        f"metadata 'tokenizer.ggml.token_type' has 7 elements for a vocabulary of {N_VOCAB}",
    ),
    "merges of numbers": (
        GOOD.put("tokenizer.ggml.merges", "arr", [1], "u32"),
        "metadata 'tokenizer.ggml.merges' must be an array of STRING, found UINT32",
    ),
    "byte tokens of a word tokenizer, dies": (
        GOOD.put("tokenizer.ggml.model", "str", "bert"),
        "the vocabulary has byte tokens, which its tokenizer 'bert' does not know",
    ),
    "template no string": (
        GOOD.put("tokenizer.chat_template", "u32", 1),
        "metadata 'tokenizer.chat_template' must be a string, found UINT32",
    ),
}

ACCEPTED = {
    "plain": GOOD,
    "tied": tiny_base(tied=True),
    "no general.type": GOOD.drop("general.type"),
    "version 2": replace(GOOD, version=2),
    "aligned to 64": replace(GOOD.put("general.alignment", "u32", 64), alignment=64),
    "half precision": tiny_base(weights="F16"),
    "bfloat16": tiny_base(weights="BF16"),
    "Q8_0": tiny_base(weights="Q8_0"),
    "Q4_0": tiny_base(weights="Q4_0"),
    "heads by block": GOOD.put("llama.attention.head_count", "arr", [4, 4], "u32"),
    "empty tokens": GOOD.put(TOKENS, "arr", [*WORDS[:-2], "", ""], "str"),
    "linear rope scaling": GOOD.put("llama.rope.scaling.type", "str", "linear"),
    "rope factor 0": real("rope.scaling.factor", 0.0),
    "no key/value head count": GOOD.drop("llama.attention.head_count_kv")
    .tensor("blk.0.attn_k.weight", shape=(N_EMBD, N_EMBD))
    .tensor("blk.0.attn_v.weight", shape=(N_EMBD, N_EMBD))
    .tensor("blk.1.attn_k.weight", shape=(N_EMBD, N_EMBD))
    .tensor("blk.1.attn_v.weight", shape=(N_EMBD, N_EMBD)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_base_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    file, expected = MALFORMED[name]
    path = file.write(tmp_path / "base.gguf")
    with pytest.raises(InvalidGGUF) as caught:
        check_base(read_header(path))
    assert caught.value.message == f"{path}: {expected}"


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_loads_and_decodes(name: str, tmp_path: Path) -> None:
    path = ACCEPTED[name].write(tmp_path / "base.gguf")
    check_base(read_header(path))
    assert results(path) == {"base.gguf": "ok"}


def test_remedies(tmp_path: Path) -> None:
    for name, hint in [
        ("an adapter", "name it in an ADAPTER line instead"),
        ("a part", "merge the parts with `llama-gguf-split --merge`, and give the one file"),
    ]:
        with pytest.raises(InvalidGGUF) as caught:
            check_base(read_header(MALFORMED[name][0].write(tmp_path / "base.gguf")))
        assert caught.value.hint == hint


def test_what_the_real_base_is(base: Path) -> None:
    info = check_base(read_header(base))
    assert "<|im_start|>" in (info.chat_template or "")
    assert info == BaseInfo(
        architecture="llama",
        name="Smollm2 135M 8k Lc100K Mix1 Ep2",
        n_params=134_515_008,
        context_length=8192,
        embedding_length=576,
        block_count=30,
        head_count=9,
        head_count_kv=3,
        quantization="Q4_1",
        size=98_362_432,
        chat_template=info.chat_template,
    )


def test_without_a_name_or_file_type(tmp_path: Path) -> None:
    """The file's stem, and the type of most weights."""
    file = tiny_base(weights="Q8_0").drop("general.name").drop("tokenizer.chat_template")
    info = check_base(read_header(file.write(tmp_path / "my-base.gguf")))
    assert (info.name, info.quantization, info.chat_template) == ("my-base", "Q8_0", None)


def test_a_mamba_has_no_heads(tmp_path: Path) -> None:
    """Head counts matter only where there are attention matrices."""
    keys = [replace(key, name=str(key.name).replace("llama.", "mamba.")) for key in GOOD.keys]
    file = File(
        keys, [Tensor("blk.0.ssm_in.weight", (N_EMBD, N_EMBD)), Tensor("blk.1.ssm_in.weight", (N_EMBD, N_EMBD))]
    )
    file = file.put("general.architecture", "str", "mamba").put("mamba.attention.head_count", "u32", 0)
    info = check_base(read_header(file.put("mamba.attention.head_count_kv", "u32", 0).write(tmp_path / "m.gguf")))
    assert (info.head_count, info.head_count_kv) == (0, 0)
