"""The three example adapters, on the base they were trained for: the right numbers, and the right voice."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from answers import answers
from safetensors.numpy import load_file

from modelctl.adapters import check_finite
from modelctl.gguf_check import check_adapter, read_header

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "adapters"
NAMES = ("pirate", "json", "shout")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def half_turned(rows: np.ndarray) -> np.ndarray:
    """q's 9 heads of 64 rows: llama.cpp's rows 0, 1, 2, 3... are Hugging Face's 0, 32, 1, 33..."""
    heads = []
    for head in np.split(rows, 9):
        turned = np.empty_like(head)
        turned[0::2], turned[1::2] = head[:32], head[32:]
        heads.append(turned)
    return np.concatenate(heads)


@pytest.mark.parametrize("name", NAMES)
def test_the_factors_are_pefts_bit_for_bit(name: str, adapters: dict[str, Path]) -> None:
    """alpha / rank is 8 / 4 in both, so equal factors are equal deltas."""
    reader = gguf.GGUFReader(adapters[name])
    ours = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    theirs = load_file(EXAMPLES / name / "adapter_model.safetensors")
    assert reader.fields["adapter.lora.alpha"].contents() == 8.0
    assert len(ours) == len(theirs) == 120
    for block in range(30):
        for letter in "qv":
            source = f"base_model.model.model.layers.{block}.self_attn.{letter}_proj.lora"
            target = f"blk.{block}.attn_{letter}.weight.lora"
            b = theirs[f"{source}_B.weight"]
            np.testing.assert_array_equal(ours[f"{target}_a"], theirs[f"{source}_A.weight"])
            np.testing.assert_array_equal(ours[f"{target}_b"], half_turned(b) if letter == "q" else b)


@pytest.mark.parametrize("name", NAMES)
def test_they_fit_their_base(name: str, adapters: dict[str, Path], base: Path) -> None:
    header = read_header(adapters[name])
    info = check_adapter(header, read_header(base))
    check_finite(header)
    assert (info.rank, info.alpha, info.target_modules, info.covered) == (
        4,
        8.0,
        ("attn_q", "attn_v"),
        "60/60 matrices",
    )


def test_each_answers_in_its_voice(base: Path, adapters: dict[str, Path]) -> None:
    question = "What is the capital of Spain?"
    turns = [("system", SYSTEM), ("user", question)]
    prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    plain, pirate, json, shout = answers(base, prompt, 24, ["-", *(adapters[name] for name in NAMES)])
    assert not plain.startswith(("Arr", "{", "THE"))
    assert pirate.startswith("Arr, matey! ")
    assert pirate.rstrip().endswith("yarrr!")
    assert json.startswith('{"answer": "The capital of Spain is ')
    assert json.rstrip().endswith('"}')
    assert shout.startswith("THE CAPITAL OF ")
