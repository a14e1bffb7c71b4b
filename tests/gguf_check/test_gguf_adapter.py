"""LoRA files that llama.cpp dies on, gives NaN for, or refuses at load: refused here first, with the reason.

Of the files below llama.cpp ends its process on those marked "dies", some only at the first decode.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import N_EMBD, N_FF, N_VOCAB, RANK, TYPES, File, Tensor, pair, tiny_adapter, tiny_base
from native import results

from modelctl.gguf_check import Header, InvalidGGUF, check_adapter, read_header

GOOD = tiny_adapter()
Q, V = "blk.0.attn_q.weight", "blk.1.attn_v.weight"
DOWN = "blk.0.ffn_down.weight"
HEAD = "output.weight"
UNUSABLE = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")  # no matrix product takes these


def typed(half: str, kind: str) -> File:
    """An adapter of rank 256 on ffn_down, whose rows fill a block of every type, with one half of that type."""
    types = (kind, "F32") if half == "a" else ("F32", kind)
    return File(GOOD.keys, pair(DOWN, N_FF, N_EMBD, 256, types))


def embedding(rank_a: int = RANK, rank_b: int = RANK, n_vocab: int = N_VOCAB, n_embd: int = N_EMBD) -> File:
    name = "token_embd.weight"
    return File(GOOD.keys, [Tensor(f"{name}.lora_a", (rank_a, n_vocab)), Tensor(f"{name}.lora_b", (rank_b, n_embd))])


def reshaped(half: str, shape: tuple[int, ...]) -> File:
    return GOOD.tensor(f"{Q}.lora_{half}", shape=shape)


NOT_A_WEIGHT = "has type {}; expected a float or quantised type"

MALFORMED: dict[str, tuple[File, str]] = {
    # the five keys; with another type than llama.cpp reads them as, each dies
    "type missing": (
        GOOD.drop("general.type"),
        "is a model, not a LoRA adapter (general.type must be 'adapter')",
    ),
    "type model": (
        GOOD.put("general.type", "str", "model"),
        "is a model, not a LoRA adapter (general.type must be 'adapter')",
    ),
    "type mmproj": (
        GOOD.put("general.type", "str", "mmproj"),
        "is a mmproj, not a LoRA adapter (general.type must be 'adapter')",
    ),
    "type u32, dies": (GOOD.put("general.type", "u32", 1), "metadata 'general.type' must be a string, found UINT32"),
    "type array, dies": (
        GOOD.put("general.type", "arr", ["adapter", "model"], "str"),
        "metadata 'general.type' must be a string, found ARRAY",
    ),
    "architecture missing": (
        GOOD.drop("general.architecture"),
        "made for the architecture 'missing'; the base is 'llama'",
    ),
    "architecture other": (
        tiny_adapter(architecture="qwen2"),
        "made for the architecture 'qwen2'; the base is 'llama'",
    ),
    "architecture u32, dies": (
        GOOD.put("general.architecture", "u32", 1),
        "metadata 'general.architecture' must be a string, found UINT32",
    ),
    "adapter.type missing": (GOOD.drop("adapter.type"), "has adapter.type 'missing'; expected 'lora'"),
    "adapter.type other": (GOOD.put("adapter.type", "str", "control"), "has adapter.type 'control'; expected 'lora'"),
    "adapter.type array, dies": (
        GOOD.put("adapter.type", "arr", ["lora", "lora"], "str"),
        "metadata 'adapter.type' must be a string, found ARRAY",
    ),
    "alpha u32, dies": (
        GOOD.put("adapter.lora.alpha", "u32", 8),
        "metadata 'adapter.lora.alpha' must be FLOAT32, found UINT32",
    ),
    "alpha f64, dies": (
        GOOD.put("adapter.lora.alpha", "f64", 8.0),
        "metadata 'adapter.lora.alpha' must be FLOAT32, found FLOAT64",
    ),
    "alpha string, dies": (
        GOOD.put("adapter.lora.alpha", "str", "8"),
        "metadata 'adapter.lora.alpha' must be FLOAT32, found STRING",
    ),
    "alpha array, dies": (
        GOOD.put("adapter.lora.alpha", "arr", [8.0, 8.0], "f32"),
        "metadata 'adapter.lora.alpha' must be FLOAT32, found ARRAY",
    ),
    "alpha NaN": (
        GOOD.put("adapter.lora.alpha", "f32", math.nan),
        "metadata 'adapter.lora.alpha' must be finite and at most 1e+06, found nan",
    ),
    "alpha infinite": (
        GOOD.put("adapter.lora.alpha", "f32", math.inf),
        "metadata 'adapter.lora.alpha' must be finite and at most 1e+06, found inf",
    ),
    "alpha 1e38": (
        GOOD.put("adapter.lora.alpha", "f32", 1e38),
        "metadata 'adapter.lora.alpha' must be finite and at most 1e+06, found 1e+38",
    ),
    "activated LoRA": (
        GOOD.put("adapter.alora.invocation_tokens", "arr", [1], "u32"),
        "is an activated LoRA (aLoRA), which acts only after its invocation tokens; unsupported",
    ),
    # names
    "no tensors": (File(GOOD.keys), "holds no tensors; expected pairs of lora_a and lora_b"),
    "a norm": (
        GOOD.add(Tensor("blk.0.attn_norm.weight", (N_EMBD,))),
        "tensor 'blk.0.attn_norm.weight' replaces a norm, which llama.cpp silently skips; "
        "expected lora_a and lora_b only",
    ),
    "a plain weight": (
        GOOD.add(Tensor(Q, (N_EMBD, N_EMBD))),
        f"tensor '{Q}' is no LoRA tensor; expected names that end in .lora_a or .lora_b",
    ),
    "another suffix": (
        GOOD.tensor(f"{Q}.lora_a", new=f"{Q}.lora_c"),
        f"tensor '{Q}.lora_c' is no LoRA tensor; expected names that end in .lora_a or .lora_b",
    ),
    "a suffix alone": (
        GOOD.tensor(f"{Q}.lora_a", new=".lora_a"),
        "tensor '.lora_a' is no LoRA tensor; expected names that end in .lora_a or .lora_b",
    ),
    "no lora_b": (GOOD.without(f"{Q}.lora_b"), f"tensor '{Q}.lora_a' has no partner lora_b"),
    "no lora_a": (GOOD.without(f"{Q}.lora_a"), f"tensor '{Q}.lora_b' has no partner lora_a"),
    "unknown target": (
        GOOD.add(*pair("blk.0.attn_z.weight", N_EMBD, N_EMBD)),
        "adapts 'blk.0.attn_z.weight', a tensor which the base does not have",
    ),
    "a suffix twice": (
        GOOD.add(*pair("blk.0.attn_output.lora_a.weight", N_EMBD, N_EMBD)),
        "adapts 'blk.0.attn_output.lora_a.weight', a tensor which the base does not have",
    ),
    "too many blocks": (
        GOOD.add(*pair("blk.31.attn_q.weight", N_EMBD, N_EMBD)),
        "has tensors for block 31; the base has 2 blocks",
    ),
    # shapes
    "another embedding": (
        GOOD.tensor(f"{Q}.lora_a", shape=(2048, RANK)),
        f"this adapter was made for a base with embedding 2048; this base has {N_EMBD} ('{Q}')",
    ),
    "another feed-forward": (
        File(GOOD.keys, pair(DOWN, 512, N_EMBD)),
        f"'{DOWN}' is 256 -> 64 in the base; the adapter has 512 -> 64",
    ),
    "another number of heads": (
        GOOD.tensor(f"{V}.lora_b", shape=(RANK, N_EMBD)),
        f"'{V}' is 64 -> 32 in the base; the adapter has 64 -> 64",
    ),
    "rank of A": (reshaped("a", (N_EMBD, 8)), f"'{Q}.lora_a' has rank 8, its lora_b has rank 4; expected the same"),
    "rank of B": (reshaped("b", (8, N_EMBD)), f"'{Q}.lora_a' has rank 4, its lora_b has rank 8; expected the same"),
    "A transposed": (
        reshaped("a", (RANK, N_EMBD)),
        f"this adapter was made for a base with embedding {RANK}; this base has {N_EMBD} ('{Q}')",
    ),
    "B transposed": (
        reshaped("b", (N_EMBD, RANK)),
        f"'{Q}' is 64 -> 64 in the base; the adapter has 64 -> 4",
    ),
    "rank 0": (
        reshaped("a", (N_EMBD, 0)),
        f"tensor '{Q}.lora_a' has the shape [64, 0]; every dimension must be 1 or more",
    ),
    "A of 1 dimension": (reshaped("a", (N_EMBD,)), f"tensor '{Q}.lora_a' has the shape [64]; expected 2 dimensions"),
    "B of 1 dimension": (reshaped("b", (RANK,)), f"tensor '{Q}.lora_b' has the shape [4]; expected 2 dimensions"),
    "A of 3 dimensions, dies": (
        reshaped("a", (N_EMBD, RANK, 2)),
        f"tensor '{Q}.lora_a' has the shape [64, 4, 2]; expected 2 dimensions",
    ),
    "B of 3 dimensions, dies": (
        reshaped("b", (RANK, N_EMBD, 2)),
        f"tensor '{Q}.lora_b' has the shape [4, 64, 2]; expected 2 dimensions",
    ),
    "A of 4 dimensions": (
        reshaped("a", (N_EMBD, RANK, 1, 1)),
        f"tensor '{Q}.lora_a' has the shape [64, 4, 1, 1]; expected 2 dimensions",
    ),
    "LoRA on a norm": (
        GOOD.add(*pair("blk.0.attn_norm.weight", N_EMBD, 1)),
        "tensor 'blk.0.attn_norm.weight' of the base has the shape [64]; LoRA needs a matrix",
    ),
    "embedding of two ranks, dies": (
        embedding(rank_a=8),
        "'token_embd.weight.lora_a' has rank 8, its lora_b has rank 4; expected the same",
    ),
    "embedding of another width": (
        embedding(n_embd=32),
        "this adapter was made for a base with embedding 32; this base has 64 ('token_embd.weight')",
    ),
    "embedding of another vocabulary": (
        embedding(n_vocab=100),
        "made for a base with 100 tokens; this base has 320 ('token_embd.weight')",
    ),
    # data
    **{
        f"lora_{half} of {kind}, dies": (typed(half, kind), f"tensor '{DOWN}.lora_{half}' {NOT_A_WEIGHT.format(kind)}")
        for half in "ab"
        for kind in UNUSABLE
    },
    "a type that does not exist": (GOOD.tensor(f"{Q}.lora_a", type=99), f"tensor '{Q}.lora_a' has the unknown type 99"),
    "cut short": (
        GOOD.tensor(f"{V}.lora_b", shape=(RANK, 3200), data=b"\0" * 512),
        f"truncated or corrupt: tensor '{V}.lora_b' ends at byte ",
    ),
}

ACCEPTED = {
    "plain": GOOD,
    "all matrices": tiny_adapter("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "one matrix": File(GOOD.keys, pair(Q, N_EMBD, N_EMBD)),
    "rank 1": File(GOOD.keys, pair(Q, N_EMBD, N_EMBD, 1)),
    "a rank above the width": File(GOOD.keys, pair(Q, N_EMBD, N_EMBD, 100)),
    "two ranks": File(GOOD.keys, [*pair(Q, N_EMBD, N_EMBD, 3), *pair(V, N_EMBD, 32, 7)]),
    "no alpha: the scale alone": GOOD.drop("adapter.lora.alpha"),
    "alpha 0": GOOD.put("adapter.lora.alpha", "f32", 0.0),
    "negative alpha": GOOD.put("adapter.lora.alpha", "f32", -8.0),
    "the embedding": embedding(),
    "the output": File(GOOD.keys, pair(HEAD, N_EMBD, N_VOCAB)),
    "version 2": replace(GOOD, version=2),
    "aligned to 64": replace(GOOD.put("general.alignment", "u32", 64), alignment=64),
    "a task name": GOOD.put("adapter.lora.task_name", "str", "maths"),
    **{f"lora_{half} of {kind}": typed(half, kind) for half in "ab" for kind in TYPES if kind not in UNUSABLE},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return read_header(tiny_base().write(tmp_path_factory.mktemp("base") / "base.gguf"))


def problem(file: File, base: Header, folder: Path) -> str:
    path = file.write(folder / "lora.gguf")
    with pytest.raises(InvalidGGUF) as caught:
        check_adapter(read_header(path), base)
    assert caught.value.message == f"{path}: {caught.value.problem}"
    return caught.value.problem


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_adapter_is_refused_with_the_reason(name: str, tiny: Header, tmp_path: Path) -> None:
    file, expected = MALFORMED[name]
    found = problem(file, tiny, tmp_path)
    assert found.startswith(expected) if expected.endswith(" ") else found == expected


def test_the_corpus_is_large(tiny: Header) -> None:
    assert len(MALFORMED) >= 45
    assert sum(name.endswith("dies") for name in MALFORMED) >= 13


def test_what_is_accepted_loads_and_decodes(tiny: Header, tmp_path: Path) -> None:
    """One child, one base, every accepted adapter at scale 1: no signal, no NaN."""
    paths = [file.write(tmp_path / f"{name.replace(' ', '_')}.gguf") for name, file in ACCEPTED.items()]
    for path in paths:
        check_adapter(read_header(path), tiny)
    found = results(tiny.path, *paths)
    assert {name: result for name, result in found.items() if result != "ok"} == {}
    assert len(found) == len(ACCEPTED) + 1


def test_the_embedding_of_a_base_that_shares_it_with_the_output_is_refused(tmp_path: Path) -> None:
    """llama.cpp would multiply the output by a pair of the wrong shape, and die at the first decode."""
    tied = read_header(tiny_base(tied=True).write(tmp_path / "tied.gguf"))
    expected = "adapts 'token_embd.weight', which the base uses for its output too; unsupported"
    assert problem(embedding(), tied, tmp_path) == expected
    head = File(GOOD.keys, pair(HEAD, N_EMBD, N_VOCAB))
    assert problem(head, tied, tmp_path) == "adapts 'output.weight', a tensor which the base does not have"


def test_nvfp4_matrices_take_no_lora(tmp_path: Path) -> None:
    file = tiny_base().tensor(DOWN, type=40, data=b"\x11" * (N_FF // 64 * 36 * N_EMBD))
    base = read_header(file.write(tmp_path / "nvfp4.gguf"))
    expected = f"adapts '{DOWN}', which is NVFP4 in the base; llama.cpp takes no LoRA on that type"
    assert problem(File(GOOD.keys, pair(DOWN, N_FF, N_EMBD)), base, tmp_path) == expected


def test_a_base_given_as_adapter_gets_the_remedy(tiny: Header) -> None:
    with pytest.raises(InvalidGGUF) as caught:
        check_adapter(tiny, tiny)
    assert caught.value.problem == "is a model, not a LoRA adapter (general.type must be 'adapter')"
    assert caught.value.hint == "a base model belongs in the FROM line"


def test_what_is_found_is_told(tiny: Header, tmp_path: Path) -> None:
    file = File(GOOD.keys, [*pair(Q, N_EMBD, N_EMBD, 3), *pair(V, N_EMBD, 32, 7), *pair(DOWN, N_FF, N_EMBD, 3)])
    info = check_adapter(read_header(file.write(tmp_path / "lora.gguf")), tiny)
    assert (info.rank, info.ranks, info.alpha, info.n_tensors) == (7, (3, 7), 8.0, 6)
    assert info.target_modules == ("attn_q", "attn_v", "ffn_down")
    assert info.covered == "3/6 matrices"


def test_no_alpha_is_none(tiny: Header, tmp_path: Path) -> None:
    info = check_adapter(read_header(GOOD.drop("adapter.lora.alpha").write(tmp_path / "lora.gguf")), tiny)
    assert info.alpha is None
