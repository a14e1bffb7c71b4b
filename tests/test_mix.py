from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.errors import BadRequest
from modelctl.mix import Mix, check_scale, format_terms, parse_terms, split_model

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
scales = st.floats(min_value=-100, max_value=100, width=32)
names = st.from_regex(r"[a-z][a-zA-Z0-9_\-.:]{0,20}", fullmatch=True).filter(lambda name: name != "none")


def test_zero_is_not_in_a_mix() -> None:
    assert Mix.of([(A, 0.0), (B, -0.0)]) == Mix.BASE
    assert not Mix.BASE
    assert Mix.of([(A, 0.5)])


def test_equal_mixes_are_equal_whatever_their_order() -> None:
    assert Mix.of([(A, 0.5), (B, 1.0)]) == Mix.of([(B, 1.0), (A, 0.5)])
    assert hash(Mix.of([(A, 0.5), (B, 1.0)])) == hash(Mix.of([(B, 1.0), (A, 0.5)]))


def test_two_names_of_one_file_add_up_and_may_cancel() -> None:
    assert Mix.of([(A, 0.5), (A, 0.25)]) == Mix.of([(A, 0.75)])
    assert Mix.of([(A, 0.5), (A, -0.5)]) == Mix.BASE


def test_scales_are_float32_so_that_equal_sets_are_one_key() -> None:
    (pair,) = Mix.of([(A, 0.1)]).scales
    assert pair[1] == struct.unpack("f", struct.pack("f", 0.1))[0] != 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 100.1, -101, True, "1", None, 10**400])
def test_a_scale_is_a_finite_number_up_to_100(bad: object) -> None:
    with pytest.raises(BadRequest, match="'math'"):
        check_scale(bad, "math")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("tutor", ("tutor", None)),
        ("tutor+math", ("tutor", {"math": 1.0})),
        ("tutor+math=0.5+science=-2", ("tutor", {"math": 0.5, "science": -2.0})),
        ("tutor+0=1", ("tutor", {"0": 1.0})),
        ("tutor:v2+none", ("tutor:v2", {})),
        ("+math=0", ("", {"math": 0.0})),
    ],
)
def test_a_mix_in_the_name(spec: str, expected: tuple[str, dict[str, float] | None]) -> None:
    assert split_model(spec) == expected


@pytest.mark.parametrize("bad", ["tutor+", "tutor+=1", "tutor+math=", "tutor+math=x", "tutor+a b=1", "tutor+a=1+a=2"])
def test_a_bad_mix_in_the_name(bad: str) -> None:
    with pytest.raises(BadRequest):
        split_model(bad)


def test_a_bare_name_needs_a_default() -> None:
    with pytest.raises(BadRequest, match="expected math=SCALE"):
        parse_terms(["math"])
    assert parse_terms(["math"], default=1.0) == {"math": 1.0}


@given(st.dictionaries(names, scales.filter(bool), min_size=1, max_size=5))
def test_what_is_spelled_reads_back(mix: dict[str, float]) -> None:
    exact = {name: float(f"{scale:g}") for name, scale in mix.items()}
    read = parse_terms(format_terms(exact).split("+"))
    assert read == {name: struct.unpack("f", struct.pack("f", scale))[0] for name, scale in exact.items()}
