"""Warnings: what is allowed, and hardly meant."""

from __future__ import annotations

import pytest

from modelctl.parser import From, Modelfile, System, parse, warnings

KEPT = "is kept and shown, but has no effect"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("SYSTEM hi\nPARAMETER stop </s>", []),
        ("PARAMETER use_mlock true", [(2, "use_mlock is deprecated and has no effect")]),
        (
            "RENDERER a",
            [(2, f"RENDERER {KEPT}: the prompt is written by TEMPLATE, or by the template in the model file")],
        ),
        ("PARSER b", [(2, f"PARSER {KEPT}: answers are passed on as the model writes them")]),
        ("DRAFT ./d.gguf", [(2, f"DRAFT {KEPT}: answers are computed without a draft model")]),
        ("REQUIRES 1.0.0", [(2, f"REQUIRES {KEPT}: it names a version of Ollama")]),
        ("CAPABILITY tools", [(2, f"CAPABILITY {KEPT}: capabilities are read from the model file and its template")]),
        (
            "SYSTEM a\nSYSTEM b\nSYSTEM c",
            [
                (2, "SYSTEM is set again in line 4, so this has no effect"),
                (3, "SYSTEM is set again in line 4, so this has no effect"),
            ],
        ),
        (
            "PARAMETER seed 1\nPARAMETER top_k 1\nPARAMETER seed 2",
            [(2, "seed is set again in line 4, so this has no effect")],
        ),
        ("PARAMETER stop a\nPARAMETER stop b", []),
        ("LICENSE a\nLICENSE b\nMESSAGE user a\nMESSAGE user a", []),
        ('PARAMETER stop ["a", "b"]', [(2, "this is one stop text, quotes and all")]),
        ('PARAMETER stop "a" "b"', [(2, "this is one stop text, quotes and all")]),
        ('PARAMETER stop "a", "b"', [(2, "this is one stop text, quotes and all")]),
        ("PARAMETER stop [INST]", []),
        ('PARAMETER stop """"""""', []),
        ('PARAMETER stop "\\n"', [(2, "a backslash stays a backslash here")]),
        ("SYSTEM 'hi'", [(2, "the single quotes belong to the text of SYSTEM")]),
        ("SYSTEM 'tis so", []),
        ('SYSTEM """a\r\nb"""', [(2, "the text of SYSTEM has Windows line ends, and the model will see them")]),
    ],
)
def test_warnings(lines: str, expected: list[tuple[int, str]]) -> None:
    found = warnings(parse(f"FROM m\n{lines}\n"))
    assert [(problem.line, problem.message) for problem in found] == expected


def test_a_warning_shows_its_line() -> None:
    assert str(warnings(parse("FROM m\nPARAMETER low_vram true"))[0]) == (
        "Modelfile:2:20: low_vram is deprecated and has no effect\n"
        "    2 | PARAMETER low_vram true\n"
        "      |                    ^~~~\n"
        "    hint: remove this line"
    )


def test_warnings_about_a_file_that_was_never_text() -> None:
    found = warnings(Modelfile((From("m"), System("a"), System("b"))))
    assert [str(problem) for problem in found] == ["Modelfile: SYSTEM is set again\n    hint: remove one of them"]


def test_only_the_first_hundred() -> None:
    assert len(warnings(parse("FROM m\n" + "SYSTEM a\n" * 500))) == 100
