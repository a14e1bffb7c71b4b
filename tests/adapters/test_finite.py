"""The scan for NaN and infinity in GGUF adapters of every type that has a place for one."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from gguf_files import N_EMBD, N_FF, TYPES, File, Tensor, pair, tiny_adapter, tiny_base

from modelctl.adapters import prepare
from modelctl.gguf_check import Header, InvalidGGUF, read_header

DOWN = "blk.0.ffn_down.weight"
FLOATS = {"F32": "<f", "F16": "<e"}
SCALED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return read_header(tiny_base().write(tmp_path_factory.mktemp("base") / "base.gguf"))


def adapter(kind: str, data: bytes | None) -> File:
    """Rank 4 on ffn_down, with lora_a of that type and, if given, that data."""
    a, b = pair(DOWN, N_FF, N_EMBD, 4, (kind, "F32"))
    return File(tiny_adapter().keys, [Tensor(a.name, a.shape, kind, data), b])


def refused(file: File, base: Header, tmp_path: Path) -> None:
    path = file.write(tmp_path / "lora.gguf")
    with pytest.raises(InvalidGGUF) as caught:
        prepare(path, base, tmp_path)
    assert (
        caught.value.message
        == f"{path}: tensor '{DOWN}.lora_a' holds NaN, infinity or numbers beyond 65504; the adapter is damaged"
    )


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 517, N_FF * 4 - 1])
def test_one_bad_float_anywhere(kind: str, value: float, at: int, tiny: Header, tmp_path: Path) -> None:
    values = [0.5] * (N_FF * 4)
    values[at] = value
    refused(adapter(kind, b"".join(struct.pack(FLOATS[kind], number) for number in values)), tiny, tmp_path)


def test_one_bad_bfloat16(tiny: Header, tmp_path: Path) -> None:
    refused(adapter("BF16", b"\0\0" * (N_FF * 4 - 1) + struct.pack("<f", math.nan)[2:]), tiny, tmp_path)


@pytest.mark.parametrize("kind", SCALED)
def test_the_scale_of_one_block(kind: str, tiny: Header, tmp_path: Path) -> None:
    _, block, size = TYPES[kind]
    n_blocks = N_FF * 4 // block
    good, infinity = b"\x11" * size, struct.pack("<e", math.inf)
    bad = good[:-2] + infinity if kind in ("Q3_K", "Q6_K") else infinity + good[2:]
    if kind == "Q2_K":
        bad = good[:-4] + infinity + good[-2:]
    refused(adapter(kind, good * (n_blocks - 1) + bad), tiny, tmp_path)
    prepare(adapter(kind, good * n_blocks).write(tmp_path / "good.gguf"), tiny, tmp_path)


def test_numbers_whose_products_overflow(tiny: Header, tmp_path: Path) -> None:
    refused(adapter("F32", struct.pack("<f", -1e38) * (N_FF * 4)), tiny, tmp_path)
    prepare(adapter("F32", struct.pack("<f", -65504) * (N_FF * 4)).write(tmp_path / "good.gguf"), tiny, tmp_path)
