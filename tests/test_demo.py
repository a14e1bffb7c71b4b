"""`make demo` on the real base: five voices in one table, nothing done twice, and README.md shows what it prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from os import environ
from pathlib import Path

import pytest
from transcript import demo, own_environment, recorded, usual

MIXES = ["base", "pirate=1", "json=1", "shout=1", "pirate=0.5"]


@dataclass
class Ran:
    environment: dict[str, str]
    first: str
    second: str


@pytest.fixture(scope="module")
def ran(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The demo, run twice in one home."""
    environment = own_environment(tmp_path_factory.mktemp("demo"))
    try:
        yield Ran(environment, demo(environment), demo(environment))
    finally:
        stop = [sys.executable, "-m", "modelctl", "stop"]
        subprocess.run(stop, env={**environ, **environment}, check=True)


def rows(printed: str) -> dict[str, str]:
    """The table's answers by mix, each on one line."""
    answers: dict[str, str] = {}
    mix = ""
    for line in printed.splitlines():
        if line.startswith("│"):
            first, answer, *_ = (cell.strip() for cell in line.strip("│").split("│"))
            mix = first or mix
            answers[mix] = f"{answers.get(mix, '')} {answer}".strip()
    return answers


def test_one_base_answers_in_four_voices(ran: Ran) -> None:
    answers = rows(ran.first)
    assert list(answers) == MIXES
    assert answers["pirate=1"].startswith("Arr, matey!")
    assert json.loads(answers["json=1"])["answer"]
    assert answers["shout=1"].isupper()
    assert answers["pirate=0.5"].startswith("Arr, matey!")
    assert not answers["base"].startswith(("Arr", "{")) and not answers["base"].isupper()
    assert "nothing was loaded again" in ran.first


def test_it_lists_the_mix_and_what_is_loaded_and_says_what_next(ran: Ran) -> None:
    assert re.search(r"^0 +pirate +0\.5 +0 ", ran.first, re.MULTILINE)
    assert re.search(r"^tutor:latest .* pirate=0\.5 ", ran.first, re.MULTILINE)
    for said in ("modelctl run tutor", "modelctl lora set", "modelctl stop", ran.environment["MODELCTL_HOST"]):
        assert said in ran.first


def test_a_second_run_does_nothing_twice(ran: Ran) -> None:
    assert "creating new layer" in ran.first
    assert "creating new layer" not in ran.second
    assert "using existing layer" in ran.second
    assert list(rows(ran.second)) == MIXES
    for said in (r"The daemon goes on at \S+ \(process (\d+)\)", r"One process \((\d+)\) gave all five answers"):
        first, second = (re.search(said, text) for text in (ran.first, ran.second))
        assert first and second and first[1] == second[1]


def test_a_model_of_the_same_name_that_is_not_the_demos_stays(ran: Ran, home: Path, tmp_path: Path) -> None:
    from tests.gguf_check.gguf_files import tiny_base

    (tmp_path / "tiny.gguf").write_bytes(tiny_base().build())
    (tmp_path / "Modelfile").write_text("FROM ./tiny.gguf\n")
    create = [sys.executable, "-m", "modelctl", "create", "tutor", "-f", tmp_path / "Modelfile"]
    subprocess.run(create, check=True)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        demo({"MODELCTL_HOME": str(home)})
    assert failed.value.returncode == 1
    assert "checking" not in failed.value.stdout


def shape(printed: str) -> list[str]:
    """What the demo prints on any machine: lines without their numbers, the table as its headers and its mixes."""
    lines = []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line)]
        if line.startswith(("┏", "┡", "└")) or (line.startswith("│") and not cells[1]):
            continue
        if line.startswith("│"):
            lines.append(f"│ {cells[1]}")
        else:
            line = re.sub(r"\b[0-9a-f]{12,64}\b", "0", " ".join(cells))
            lines.append(" ".join(re.sub(r"\d+", "0", line).split()))
    return lines


def test_readme_shows_what_the_demo_prints(ran: Ran) -> None:
    """After a change: make transcript."""
    assert shape(recorded()) == shape(usual(ran.first, ran.environment))
