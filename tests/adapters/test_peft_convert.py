"""Converted adapters against what PEFT computes, worked out here from its definition.

PEFT adds scaling * B @ A to a matrix, with scaling = alpha / r, or alpha / sqrt(r) under rsLoRA. The q and k of a llama
GGUF have their rows in another order. Both are spelled out below, apart from the code under test; that PEFT itself
agrees is shown by scripts/compare_peft.py, which needs torch.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import File, Key, tiny_base
from gguf_files import Tensor as Weight
from native import logits
from peft_folders import MODULES, Folder, module, peft, tensor

from modelctl.adapters import convert, is_peft, prepare
from modelctl.errors import BadRequest, ModelctlError
from modelctl.gguf_check import Header, read_header

HEADS = {"q_proj": 4, "k_proj": 2}
ALL = tuple(MODULES)


def row_order(n_rows: int, n_heads: int) -> list[int]:
    """Row i of the GGUF's matrix is row order[i] of Hugging Face's: llama.cpp rotates rows 2i and 2i+1 of a head
    together, Hugging Face rows i and i + half."""
    head = n_rows // n_heads
    order = []
    for start in range(0, n_rows, head):
        for i in range(head // 2):
            order += [start + i, start + head // 2 + i]
    return order


def expected(folder: Folder, scaling: Any, permuted: bool = True) -> dict[str, Any]:
    """{tensor of the base: delta}, float64, [n_out, n_in]. `scaling` maps (block, short name) to a number."""
    deltas = {}
    for block in range(2):
        for name, (_, target) in MODULES.items():
            prefix = f"base_model.model.{module(block, name)}"
            if f"{prefix}.lora_A.weight" not in folder.tensors:
                continue
            a, b = (folder.tensors[f"{prefix}.lora_{half}.weight"].array() for half in "AB")
            delta = scaling(block, name) * b @ a
            if permuted and name in HEADS:
                delta = delta[row_order(len(delta), HEADS[name])]
            deltas[f"blk.{block}.{target}.weight"] = delta
    return deltas


def found(path: Path) -> dict[str, Any]:
    """The same of a GGUF file: alpha / rank * B @ A, as llama.cpp has it."""
    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {item.name: item.data.astype(np.float64) for item in reader.tensors}
    names = {name.rpartition(".")[0] for name in tensors}
    return {
        name: alpha / tensors[f"{name}.lora_b"].shape[1] * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        for name in names
    }


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return read_header(tiny_base().write(tmp_path_factory.mktemp("base") / "base.gguf"))


def converted(folder: Folder, base: Header, tmp_path: Path) -> Path:
    out = tmp_path / "out.gguf"
    convert(folder.write(tmp_path / "lora"), base, out)
    return out


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_every_matrix_in_every_precision(dtype: str, tiny: Header, tmp_path: Path) -> None:
    folder = peft(*ALL, dtype=dtype)
    same(found(converted(folder, tiny, tmp_path)), expected(folder, lambda *_: 8 / 4))


def test_a_fractional_alpha(tiny: Header, tmp_path: Path) -> None:
    folder = peft(rank=3, lora_alpha=0.5)
    same(found(converted(folder, tiny, tmp_path)), expected(folder, lambda *_: 0.5 / 3))


def test_rslora_divides_by_the_root_of_the_rank(tiny: Header, tmp_path: Path) -> None:
    folder = peft(use_rslora=True)
    same(found(converted(folder, tiny, tmp_path)), expected(folder, lambda *_: 8 / math.sqrt(4)))


def test_a_rank_pattern(tiny: Header, tmp_path: Path) -> None:
    folder = peft("q_proj", "v_proj", ranks={"v_proj": 7}, rank_pattern={"v_proj": 7})
    same(found(converted(folder, tiny, tmp_path)), expected(folder, lambda _, name: 8 / (7 if name == "v_proj" else 4)))


def test_an_alpha_pattern_is_folded_into_b(tiny: Header, tmp_path: Path) -> None:
    folder = peft(alpha_pattern={r"model\.layers\.1\.self_attn\.q_proj": 3})
    path = converted(folder, tiny, tmp_path)
    same(found(path), expected(folder, lambda block, name: (3 if (block, name) == (1, "q_proj") else 8) / 4))
    assert read_header(path).metadata["adapter.lora.alpha"] == 8.0


def test_both_patterns_under_rslora(tiny: Header, tmp_path: Path) -> None:
    """The first pattern that matches decides, as in PEFT; a pattern must match whole components of a name."""
    folder = peft(
        use_rslora=True,
        ranks={"q_proj": 9},
        rank_pattern={"roj": 5, "q_proj": 9},
        alpha_pattern={r"layers.\d+.self_attn.v_proj": 2, "v_proj": 77},
    )
    scaling = {"q_proj": 8 / 3, "v_proj": 2 / 2}
    same(found(converted(folder, tiny, tmp_path)), expected(folder, lambda _, name: scaling[name]))


def test_head_counts_by_block(tmp_path: Path) -> None:
    file = tiny_base().put("llama.attention.head_count", "arr", [4, 2], "u32")
    base = read_header(file.put("llama.attention.head_count_kv", "arr", [2, 2], "u32").write(tmp_path / "base.gguf"))
    folder = peft("q_proj")
    deltas = expected(folder, lambda *_: 2.0, permuted=False)
    order = {"blk.0.attn_q.weight": row_order(64, 4), "blk.1.attn_q.weight": row_order(64, 2)}
    same(found(converted(folder, base, tmp_path)), {name: delta[order[name]] for name, delta in deltas.items()})


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3", "olmo2"])
def test_other_architectures_keep_their_rows(architecture: str, tmp_path: Path) -> None:
    base = read_header(tiny_base(architecture=architecture).write(tmp_path / "base.gguf"))
    folder = peft(*ALL)
    path = converted(folder, base, tmp_path)
    assert read_header(path).architecture == architecture
    same(found(path), expected(folder, lambda *_: 2.0, permuted=False))


@pytest.mark.parametrize("architecture", ["granite", "mistral3"])
def test_relatives_of_llama_reorder_theirs(architecture: str, tmp_path: Path) -> None:
    base = read_header(tiny_base(architecture=architecture).write(tmp_path / "base.gguf"))
    folder = peft(*ALL)
    same(found(converted(folder, base, tmp_path)), expected(folder, lambda *_: 2.0))


def test_names_inside_a_vision_model_and_with_the_adapters_name(tiny: Header, tmp_path: Path) -> None:
    folder = peft()
    renamed = {
        name.replace("model.model.", "model.model.language_model.").replace(".weight", ".default.weight"): value
        for name, value in folder.tensors.items()
    }
    path = converted(Folder(folder.config, renamed), tiny, tmp_path)
    same(found(path), expected(folder, lambda *_: 2.0))


def test_the_output_of_an_untied_base(tiny: Header, tmp_path: Path) -> None:
    folder = peft()
    folder = folder.add("base_model.model.lm_head.lora_A.weight", tensor(4, 64, seed="a"))
    folder = folder.add("base_model.model.lm_head.lora_B.weight", tensor(320, 4, seed="b"))
    a, b = (folder.tensors[f"base_model.model.lm_head.lora_{half}.weight"].array() for half in "AB")
    deltas = found(converted(folder, tiny, tmp_path))
    np.testing.assert_allclose(deltas["output.weight"], 2.0 * b @ a, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("modules", "options"),
    [
        (ALL, {"lora_alpha": 30.5}),
        (
            ("q_proj", "k_proj"),
            {"lora_alpha": 2000},
        ),  # only the attention's pattern changes, and so sharply that it shows
        (ALL, {"use_rslora": True, "alpha_pattern": {"k_proj": 1}}),
    ],
)
def test_llama_cpp_computes_with_it_what_a_merged_base_computes(
    modules: tuple[str, ...], options: dict[str, Any], tiny: Header, tmp_path: Path
) -> None:
    """The same logits from base + adapter as from a base whose matrices had the deltas added."""
    folder = peft(*modules, **options)
    adapter = converted(folder, tiny, tmp_path)
    root = math.sqrt(4) if "use_rslora" in options else 4

    def scaling(_: int, name: str) -> float:
        alpha = options.get("alpha_pattern", {}).get(name, folder.config["lora_alpha"])
        return float(alpha / root)

    merged = merge(tiny_base(), expected(folder, scaling)).write(tmp_path / "merged.gguf")
    plain, with_adapter = map(np.array, logits(tiny.path, adapter))
    (of_merged,) = map(np.array, logits(merged))
    assert np.abs(with_adapter - of_merged).max() < 1e-3 * np.abs(with_adapter - plain).max()


def merge(file: File, deltas: dict[str, Any]) -> File:
    def changed(weight: Weight) -> Weight:
        delta = deltas.get(str(weight.name))
        if delta is None:
            return weight
        values = np.frombuffer(weight.bytes(), "<f4").reshape(delta.shape) + delta
        return Weight(weight.name, weight.shape, "F32", values.astype("<f4").tobytes())

    return File(file.keys, [changed(weight) for weight in file.tensors])


def test_the_same_input_gives_the_same_bytes(tiny: Header, tmp_path: Path) -> None:
    folder = peft(*ALL)
    shuffled = Folder(folder.config, dict(reversed(folder.tensors.items())))
    digests = set()
    for name, variant in [("one", folder), ("two", folder), ("three", shuffled)]:
        out = tmp_path / f"{name}.gguf"
        convert(variant.write(tmp_path / name), tiny, out)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_prepare_converts_a_folder_and_checks_a_file(tiny: Header, tmp_path: Path) -> None:
    source = peft().write(tmp_path / "pirate")
    steps: list[tuple[int, int]] = []
    (tmp_path / "work").mkdir()
    file, info, kind = prepare(source, tiny, tmp_path / "work", lambda done, total: steps.append((done, total)))
    assert (kind, file, info.covered, info.rank, info.alpha) == (
        "peft",
        tmp_path / "work" / "pirate.gguf",
        "4/4 matrices",
        4,
        8.0,
    )
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1] == sum(len(value.data) for value in peft().tensors.values())
    assert prepare(file, tiny, tmp_path) == (file, info, "gguf")


def test_is_peft(tmp_path: Path) -> None:
    folder = peft().write(tmp_path / "lora")
    assert is_peft(folder)
    assert not is_peft(folder / "adapter_config.json")
    assert not is_peft(tmp_path)
    assert not is_peft(tmp_path / "none")


def test_nothing_is_left_when_writing_fails(tiny: Header, tmp_path: Path) -> None:
    """The weights file is cut after it was checked."""
    folder = peft().write(tmp_path / "lora")
    weights = folder / "adapter_model.safetensors"

    def cut(done: int, _: int) -> None:
        weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(BadRequest, match="changed while it was read"):
        convert(folder, tiny, tmp_path / "out.gguf", cut)
    assert not (tmp_path / "out.gguf").exists()


def test_a_place_that_cannot_be_written(tiny: Header, tmp_path: Path) -> None:
    out = tmp_path / "none" / "out.gguf"
    with pytest.raises(ModelctlError) as caught:
        convert(peft().write(tmp_path / "lora"), tiny, out)
    assert caught.value.message == f"cannot write {out}: No such file or directory"


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    """A mixture's experts are one stacked tensor in the GGUF, many modules in PEFT."""
    base = tiny_base().add(Weight("blk.0.ffn_gate_exps.weight", (64, 32, 2)))
    header = read_header(
        File([*base.keys, Key("llama.expert_count", "u32", 2)], base.tensors).write(tmp_path / "moe.gguf")
    )
    name = "model.layers.0.block_sparse_moe.experts.0.w1"
    folder = peft().add(f"base_model.model.{name}.lora_A.weight", tensor(4, 64, seed="a"))
    folder = folder.add(f"base_model.model.{name}.lora_B.weight", tensor(32, 4, seed="b"))
    with pytest.raises(BadRequest) as caught:
        converted(folder, header, tmp_path)
    assert caught.value.message.endswith(
        f": the base (architecture llama, 2 blocks) has no module '{name}', or it is not a single matrix"
    )
