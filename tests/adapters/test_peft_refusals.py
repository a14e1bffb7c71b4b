"""PEFT folders that a plain LoRA cannot carry, or that are broken: one clear error each, and nothing written."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from gguf_files import tiny_base
from peft_folders import Folder, Tensor, module, peft, tensor

from modelctl.adapters import prepare
from modelctl.errors import BadRequest
from modelctl.gguf_check import Header, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = module(0, "q_proj")
A, B = (f"base_model.model.{Q}.lora_{half}.weight" for half in "AB")
MERGE = "merge it into the base"
DTYPES = "expected F32, F16, BF16, F64"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return read_header(tiny_base().write(tmp_path_factory.mktemp("base") / "base.gguf"))


def refusal(folder: Path, base: Header, tmp_path: Path) -> BadRequest:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(BadRequest) as caught:
        prepare(folder, base, work)
    assert list(work.iterdir()) == []
    return caught.value


def unsupported(what: str) -> str:
    return f"uses {what}, which is unsupported"


# changes to the config -> what is said of it, and the remedy
CONFIGS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "DoRA": ({"use_dora": True}, unsupported("DoRA (use_dora)"), f"{MERGE}, or train with use_dora=False"),
    "saved modules": (
        {"modules_to_save": ["lm_head"]},
        unsupported("fully trained modules (modules_to_save)"),
        f"{MERGE}, or train without them",
    ),
    "bias": (
        {"bias": "lora_only"},
        "trained biases (bias='lora_only'), which are unsupported",
        f"train with bias='none', or {MERGE}",
    ),
    "LoRA bias": (
        {"lora_bias": True},
        unsupported("bias in the LoRA matrices (lora_bias)"),
        "train with lora_bias=False",
    ),
    "aLoRA": (
        {"alora_invocation_tokens": [1, 2]},
        unsupported("an activated LoRA (alora_invocation_tokens)"),
        "train a plain LoRA",
    ),
    "tokens": ({"trainable_token_indices": [5]}, unsupported("trained tokens (trainable_token_indices)"), MERGE),
    "parameters": ({"target_parameters": ["w"]}, unsupported("LoRA on bare parameters (target_parameters)"), MERGE),
    "replication": ({"layer_replication": [[0, 2]]}, unsupported("replicated layers (layer_replication)"), MERGE),
    "KaSA": ({"kasa_config": {"beta": 1}}, unsupported("KaSA (kasa_config)"), MERGE),
    "QALoRA": ({"use_qalora": True}, unsupported("QALoRA (use_qalora)"), MERGE),
    "what is to come": ({"use_zlora": True}, unsupported("use_zlora"), MERGE),
    "PiSSA": (
        {"init_lora_weights": "pissa_niter_4"},
        "init_lora_weights='pissa_niter_4' changed the base's own weights, which a LoRA file cannot carry",
        "save it again with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
    ),
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected 'LORA'", None),
    "no method": ({"peft_type": None}, "peft_type is None; expected 'LORA'", None),
    "MLX": ({"lora_parameters": {}}, "an MLX adapter, which is unsupported", "convert it to PEFT or GGUF first"),
    "no rank": ({"r": None}, "r must be a whole number from 1 to 65536, found None", None),
    "rank 0": ({"r": 0}, "r must be a whole number from 1 to 65536, found 0", None),
    "rank yes": ({"r": True}, "r must be a whole number from 1 to 65536, found True", None),
    "rank in words": ({"r": "4"}, "r must be a whole number from 1 to 65536, found '4'", None),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha must be a number other than 0, of at most 1e+06; found 0", None),
    "alpha NaN": (
        {"lora_alpha": math.nan},
        "lora_alpha must be a number other than 0, of at most 1e+06; found nan",
        None,
    ),
    "alpha infinite": (
        {"lora_alpha": -math.inf},
        "lora_alpha must be a number other than 0, of at most 1e+06; found -inf",
        None,
    ),
    "alpha in words": (
        {"lora_alpha": "8"},
        "lora_alpha must be a number other than 0, of at most 1e+06; found '8'",
        None,
    ),
    "a pattern of no rank": (
        {"rank_pattern": {"q_proj": 0}},
        "rank_pattern['q_proj'] must be a whole number from 1 to 65536, found 0",
        None,
    ),
    "patterns in a list": ({"alpha_pattern": ["q_proj"]}, "alpha_pattern must be an object of module names", None),
    "an invalid pattern": (
        {"rank_pattern": {"(": 4}},
        "'(' in rank_pattern is no valid pattern: missing ), unterminated subpattern at position 0",
        None,
    ),
    "a pattern that could take for ever": (
        {"rank_pattern": {"(a+)+b": 4}},
        "the pattern '(a+)+b' in rank_pattern is too complex",
        "name the modules instead",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_config_asks_for(name: str, tiny: Header, tmp_path: Path) -> None:
    changes, said, remedy = CONFIGS[name]
    folder = peft().configured(**changes).write(tmp_path / "lora")
    error = refusal(folder, tiny, tmp_path)
    assert (error.message, error.hint) == (f"{folder / CONFIG}: {said}", remedy)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        (b'{"r": 4', "not valid JSON: Expecting ',' delimiter: line 1 column 8 (char 7)"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b'{"r": "\xff"}', "not UTF-8 text (byte 7)"),
        (b"[" * 100_000, "not valid JSON: nested too deeply, or a number too long"),
        (b'{"r": ' + b"1" * 5000 + b"}", "not valid JSON: nested too deeply, or a number too long"),
        (b" " * (5 << 20), "larger than 4 MiB; expected a PEFT adapter_config.json"),
    ],
)
def test_a_broken_config(text: bytes, said: str, tiny: Header, tmp_path: Path) -> None:
    folder = peft().write(tmp_path / "lora")
    (folder / CONFIG).write_bytes(text)
    assert refusal(folder, tiny, tmp_path).message == f"{folder / CONFIG}: {said}"


def renamed(old: str, new: str) -> Folder:
    folder = peft()
    return Folder(folder.config, {name.replace(old, new): value for name, value in folder.tensors.items()})


def extra(name: str, *shape: int) -> Folder:
    return peft().add(name, tensor(*shape, seed="extra"))


PLAIN = "not a plain LoRA weight; expected names that end in lora_A.weight or lora_B.weight"
OTHER_BASE = "use the base that the adapter was trained on"

TENSORS: dict[str, tuple[Folder, str, str | None]] = {
    "none": (Folder(peft().config), "holds no tensors; expected lora_A and lora_B weights", None),
    "no lora_B": (peft().without(B), f"module '{Q}' has no lora_B.weight", None),
    "no lora_A": (peft().without(A), f"module '{Q}' has no lora_A.weight", None),
    "twice": (extra(A.replace(".weight", ".default.weight"), 4, 64), f"module '{Q}' has two tensors lora_A", None),
    "two names of one matrix": (
        extra(A.replace("model.layers", "layers"), 4, 64).add(
            B.replace("model.layers", "layers"), tensor(64, 4, seed="")
        ),
        f"'{Q}' and '{Q.removeprefix('model.')}' are the same tensor of the base, 'blk.0.attn_q.weight'",
        None,
    ),
    "an unknown module": (
        renamed("q_proj", "z_proj"),
        "the base (architecture llama, 2 blocks) has no module 'model.layers.0.self_attn.z_proj', "
        "or it is not a single matrix",
        OTHER_BASE,
    ),
    "too many blocks": (
        renamed("layers.1.", "layers.31."),
        "the base (architecture llama, 2 blocks) has no module 'model.layers.31.self_attn.q_proj', "
        "or it is not a single matrix",
        OTHER_BASE,
    ),
    "a DoRA magnitude": (
        extra(f"base_model.model.{Q}.lora_magnitude_vector", 64),
        f"tensor 'base_model.model.{Q}.lora_magnitude_vector': a DoRA magnitude, which is unsupported",
        MERGE,
    ),
    "an embedding": (
        extra("base_model.model.model.embed_tokens.lora_embedding_A", 4, 320),
        "tensor 'base_model.model.model.embed_tokens.lora_embedding_A': LoRA on the embedding, which is unsupported",
        MERGE,
    ),
    "whole embeddings": (
        extra("base_model.model.model.embed_tokens.weight", 320, 64),
        "tensor 'base_model.model.model.embed_tokens.weight': whole embeddings, saved when tokens were added in "
        "training, which are unsupported",
        MERGE,
    ),
    "a bias": (
        extra(f"base_model.model.{Q}.bias", 64),
        f"tensor 'base_model.model.{Q}.bias': a trained bias, which is unsupported",
        MERGE,
    ),
    "a norm": (
        extra("base_model.model.model.norm.weight", 64),
        f"tensor 'base_model.model.model.norm.weight': {PLAIN}",
        MERGE,
    ),
    "another base": (
        Folder(peft().config, {A: tensor(4, 2048, seed="a"), B: tensor(2048, 4, seed="b")}),
        f"module '{Q}' is 2048 -> 2048; in the base it is 64 -> 64",
        OTHER_BASE,
    ),
    "another rank": (
        peft(rank=4).configured(r=8),
        f"module '{Q}' has lora_A of rank 4 and lora_B of rank 4; adapter_config.json says 8",
        None,
    ),
    "two ranks": (
        peft().add(A, tensor(5, 64, seed="a")),
        f"module '{Q}' has lora_A of rank 5 and lora_B of rank 4; adapter_config.json says 4",
        None,
    ),
    "a vector": (peft().add(A, tensor(64, seed="a")), f"tensor '{A}' has the shape [64]; expected a matrix", None),
    "an empty matrix": (
        peft().add(A, Tensor("F32", (0, 64), b"")),
        f"tensor '{A}' has the shape [0, 64]; expected a matrix",
        None,
    ),
    "integers": (
        peft().add(A, Tensor("I32", (4, 64), b"\0" * 1024)),
        f"tensor '{A}' has dtype I32; {DTYPES}",
        None,
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_the_tensors_are(name: str, tiny: Header, tmp_path: Path) -> None:
    contents, said, remedy = TENSORS[name]
    folder = contents.write(tmp_path / "lora")
    error = refusal(folder, tiny, tmp_path)
    assert (error.message, error.hint) == (f"{folder / WEIGHTS}: {said}", remedy)


def test_the_output_of_a_base_that_shares_it_with_the_embedding(tmp_path: Path) -> None:
    tied = read_header(tiny_base(tied=True).write(tmp_path / "base.gguf"))
    folder = peft().add("base_model.model.lm_head.lora_A.weight", tensor(4, 64, seed="a"))
    folder = folder.add("base_model.model.lm_head.lora_B.weight", tensor(320, 4, seed="b"))
    error = refusal(folder.write(tmp_path / "lora"), tied, tmp_path)
    assert error.hint == (
        "this base uses its embedding for the output, which LoRA cannot change alone; train without lm_head"
    )


def broken(data: bytes) -> dict[str, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header[A]["data_offsets"] = [0, 1 << 40]
    lying = json.dumps(header).encode()
    return {
        "empty": b"",
        "cut short": data[:-1],
        "cut in the header": data[:100],
        "too long": data + b"\0",
        "a header of an exabyte": struct.pack("<Q", 1 << 60) + data[8:],
        "text": b"this is not safetensors at all",
        "a tensor beyond the file": struct.pack("<Q", len(lying)) + lying + data[8 + length :],
        "header no JSON": struct.pack("<Q", 8) + b'{"a": 1,',
        "header no object": struct.pack("<Q", 8) + b"[1,2,3]  "[:8],
    }


@pytest.mark.parametrize("name", list(broken(peft().weights())))
def test_a_broken_weights_file(name: str, tiny: Header, tmp_path: Path) -> None:
    folder = peft().write(tmp_path / "lora")
    (folder / WEIGHTS).write_bytes(broken(peft().weights())[name])
    error = refusal(folder, tiny, tmp_path)
    assert error.message.startswith(f"{folder / WEIGHTS}: not a valid safetensors file: ")
    assert error.hint == "copy or download the file again"


def test_a_pickle_is_never_loaded(tiny: Header, tmp_path: Path) -> None:
    folder = peft().write(tmp_path / "lora")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    error = refusal(folder, tiny, tmp_path)
    pickle = folder / "adapter_model.bin"
    assert error.message == f"{pickle}: a pickle can run any code when loaded, so it never is; expected {WEIGHTS}"
    assert error.hint == "save the adapter again with save_pretrained(..., safe_serialization=True)"


def test_missing_weights(tiny: Header, tmp_path: Path) -> None:
    folder = peft().write(tmp_path / "lora")
    (folder / WEIGHTS).unlink()
    assert refusal(folder, tiny, tmp_path).message == f"{folder / WEIGHTS}: no such file"


def test_a_folder_that_is_no_adapter(tiny: Header, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    assert refusal(folder, tiny, tmp_path).message == f"{folder}: a folder without {CONFIG}"


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    base = read_header(tiny_base(architecture="mamba").write(tmp_path / "base.gguf"))
    error = refusal(peft().write(tmp_path / "lora"), base, tmp_path)
    assert error.message == f"{base.path}: PEFT adapters for the architecture 'mamba' cannot be converted here"
    assert (error.hint or "").startswith("convert it with llama.cpp's convert_lora_to_gguf.py, and give the GGUF file")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_that_are_no_numbers(value: float, dtype: str, tiny: Header, tmp_path: Path) -> None:
    """Named by what was given, the folder, and by the tensor's name in the GGUF."""
    folder = peft(dtype=dtype)
    good = folder.tensors[B]
    bad = {"F32": struct.pack("<f", value), "F16": struct.pack("<e", value), "BF16": struct.pack("<f", value)[2:]}
    path = folder.add(B, Tensor(dtype, good.shape, good.data[: -len(bad[dtype])] + bad[dtype])).write(tmp_path / "lora")
    said = "tensor 'blk.0.attn_q.weight.lora_b' holds NaN, infinity or numbers beyond 65504; the adapter is damaged"
    assert refusal(path, tiny, tmp_path).message == f"{path}: {said}"
