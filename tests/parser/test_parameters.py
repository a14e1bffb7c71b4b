"""The PARAMETER table, and the values it takes from text and from JSON."""

from __future__ import annotations

import math

import pytest

from modelctl.parser import PARAMETERS, ParameterError, check_value, deprecated, table

MANY = "not a number of more than 20 digits"
OLLAMA = {  # api/types.go: name -> default
    "num_keep": 4,
    "seed": -1,
    "num_predict": -1,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "temperature": 0.8,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop": None,
    "num_ctx": 0,
    "num_batch": 512,
    "num_gpu": -1,
    "main_gpu": None,
    "use_mmap": None,
    "num_thread": 0,
    "draft_num_predict": 4,
}


def test_every_parameter_of_ollama_with_its_default() -> None:
    assert {name: PARAMETERS[name].default for name in OLLAMA} == OLLAMA
    assert set(deprecated()) >= {"penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock"}


def test_every_default_is_one_of_its_values() -> None:
    for name, spec in PARAMETERS.items():
        assert spec.name == name
        if spec.default is not None:
            assert type(spec.default) is spec.type
            assert check_value(name, spec.default) == spec.default


def test_the_table_for_help_shows_what_the_parser_uses() -> None:
    rows = {row.name: row for row in table()}
    assert set(rows) == {name for name, spec in PARAMETERS.items() if not spec.deprecated}
    assert rows["temperature"][1:4] == ("float", "0.8", "0 to 100")
    assert rows["num_predict"][1:4] == ("int", "-1", "-2 or more")
    assert rows["seed"][1:4] == ("int", "-1", "-1 to 4294967295")
    assert rows["use_mmap"][1:4] == ("bool", "auto", "true or false")
    assert rows["ignore_eos"][1:4] == ("bool", "false", "true or false")
    assert rows["stop"][1:4] == ("str", "none", "any text")
    assert all(row.help for row in rows.values())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", 0, 0.0),
        ("temperature", 1.5, 1.5),
        ("temperature", "0.7", 0.7),
        ("num_ctx", 4096, 4096),
        ("num_ctx", 4096.0, 4096),  # JSON has but one kind of number
        ("num_ctx", " 4096 ", 4096),
        ("use_mmap", True, True),
        ("use_mmap", "F", False),
        ("stop", "x", "x"),
        ("stop", ["x", "y"], ["x", "y"]),
        ("stop", [], []),
        ("low_vram", True, True),
    ],
)
def test_values(name: str, value: object, expected: object) -> None:
    checked = check_value(name, value)
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message", "hint"),
    [
        ("temprature", 1, "unknown parameter 'temprature'", "did you mean temperature?"),
        ("qqq", 1, "unknown parameter 'qqq'", "`modelctl help parameters` lists them all"),
        ("", 1, "unknown parameter ''", "`modelctl help parameters` lists them all"),
        ("x" * 10_000, 1, f"unknown parameter '{'x' * 59}…'", "`modelctl help parameters` lists them all"),
        ("temperature", True, "temperature takes a number from 0 to 100, not true", None),
        ("temperature", None, "temperature takes a number from 0 to 100, not null", None),
        ("temperature", [1], "temperature takes a number from 0 to 100, not a list", None),
        ("temperature", math.nan, "temperature takes a number from 0 to 100, not nan", None),
        ("temperature", math.inf, "temperature takes a number from 0 to 100, not inf", None),
        ("seed", -(10**20), f"seed takes a whole number from -1 to 4294967295, {MANY}", None),
        pytest.param("top_k", 10**5000, f"top_k takes a whole number of at most 2147483647, {MANY}", None, id="digits"),
        ("temperature", "0,7", "temperature takes a number from 0 to 100, not '0,7'", "write 0.7"),
        (
            "top_p",
            90,
            "top_p takes a number from 0 to 1, not 90",
            "it is a share, not a percentage: write 0.9 for 90 %",
        ),
        ("num_ctx", 40.5, "num_ctx takes a whole number of 0 or more, not 40.5", None),
        ("num_ctx", True, "num_ctx takes a whole number of 0 or more, not true", None),
        ("num_ctx", -1, "num_ctx takes a whole number of 0 or more, not -1", None),
        ("num_ctx", 2**31, "num_ctx takes a whole number of at most 2147483647, not 2147483648", None),
        ("num_ctx", "4k", "num_ctx takes a whole number of 0 or more, not '4k'", "write 4096"),
        ("use_mmap", 1, "use_mmap takes true or false, not 1", None),
        ("use_mmap", "on", "use_mmap takes true or false, not 'on'", "write true"),
        ("stop", 1, "stop takes a text or a list of texts, not 1", None),
        ("stop", ["a", None], "stop takes a text or a list of texts, not null", None),
        ("stop", {}, "stop takes a text or a list of texts, not a dict", None),
        ("stop", ["a", ""], "stop must not be empty: it would end every answer at once", None),
    ],
)
def test_refused_values(name: str, value: object, message: str, hint: str | None) -> None:
    with pytest.raises(ParameterError) as caught:
        check_value(name, value)
    assert (caught.value.message, caught.value.hint) == (message, hint)
