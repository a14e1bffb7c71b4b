"""The corpus: a file in valid/ means exactly what its .json says; one in invalid/ is refused in its .txt's words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from modelctl.parser import Modelfile, ModelfileError, decode, dump, parse, tidy

CORPUS = Path(__file__).parent.parent / "modelfiles"
VALID = sorted((CORPUS / "valid").glob("*.modelfile"))
INVALID = sorted((CORPUS / "invalid").glob("*.modelfile"))


def test_the_corpus_is_there() -> None:
    assert len(VALID) >= 150
    assert len(INVALID) >= 150
    assert {path.stem for path in VALID} == {path.stem for path in (CORPUS / "valid").glob("*.json")}
    assert {path.stem for path in INVALID} == {path.stem for path in (CORPUS / "invalid").glob("*.txt")}


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid(path: Path) -> None:
    modelfile = parse(decode(path.read_bytes()))
    expected = json.loads(path.with_suffix(".json").read_text())
    assert _rows(modelfile) == expected
    assert _types(_rows(modelfile)) == _types(expected)  # 1 is not 1.0, and not true


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_reads_back(path: Path) -> None:
    modelfile = parse(decode(path.read_bytes()))
    for write in (dump, tidy):
        text = write(modelfile)
        assert parse(text) == modelfile
        assert write(parse(text)) == text


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid(path: Path) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse(decode(path.read_bytes()))
    assert f"{caught.value}\n" == path.with_suffix(".txt").read_text()


def _rows(modelfile: Modelfile) -> list[list[Any]]:
    """[["FROM", "llama3.2"], ["PARAMETER", "seed", 1], …]"""
    return [
        [type(node).__name__.upper(), *(getattr(node, f.name) for f in dataclasses.fields(node) if f.name != "span")]
        for node in modelfile.instructions
    ]


def _types(rows: list[list[Any]]) -> list[list[type]]:
    return [list(map(type, row)) for row in rows]
