"""README.md and docs/: whatever they show is typed, run and compared; whatever they list is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transcript import own_environment

from modelctl import parser
from modelctl.daemon.app import ROUTES
from tests.documents import ROOT, Command, Done, checkout, commands, run

RUN = ("README.md", "docs/modelfile.md", "docs/api.md", "docs/store.md", "docs/engine.md")
PROSE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


@pytest.mark.parametrize("name", RUN)
def test_what_a_document_shows_is_so(name: str, base: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the documents call curl")
    environment = own_environment(tmp_path / "home")
    folder = checkout(tmp_path / "checkout")
    if name != "README.md":  # which begins without any model
        modelctl("create", "tutor", "-f", str(folder / "Modelfile.example"), **environment)
    try:
        ended = run(ROOT / name, folder, environment)
    finally:
        modelctl("stop", **environment)
    problems = [problem for done in ended if (problem := done.problem())]
    assert not problems, "\n\n".join(problems)


def modelctl(*args: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-m", "modelctl", *args], env={**os.environ, **environment}, check=True)


@pytest.mark.parametrize("name", RUN)
def test_every_document_has_something_to_run(name: str) -> None:
    assert len(commands(ROOT / name)) >= 3


def ended(shown: str, printed: str, code: int = 0) -> Done:
    return Done(Command("x.md", 1, "modelctl ps", shown), code, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("", "anything"),
        ("NAME  SIZE\na     101 MB", "\nNAME    SIZE\na       99.5 MB\n"),
        ("first\n...\nlast", "first\n1\n2\nlast"),
        ("Arr, matey! th' moon be a rock, yarrr!", "Arr, matey! the moon be cheese, yarrr!"),
        ("WATER IS MADE OF HYDROGEN.", "WATER IS WET AND COLD."),
        ('{"answer": "Yes."}', '{"answer": "No."}'),
    ],
)
def test_a_document_may_differ_in_numbers_and_wording(shown: str, printed: str) -> None:
    assert ended(shown, printed).problem() is None


@pytest.mark.parametrize(
    ("shown", "printed", "code"),
    [
        ("", "", 1),
        ("one", "one\ntwo", 0),
        ("one\n...\nthree", "one\ntwo", 0),
        ("Arr, matey! th' moon be a rock, yarrr!", "The moon is a rock.", 0),
        ("WATER IS MADE OF HYDROGEN.", "Water is made of hydrogen.", 0),
        ("Error: no model 'x'", "Error: no model 'x'", 0),
    ],
)
def test_a_document_that_is_wrong_is_found(shown: str, printed: str, code: int) -> None:
    assert ended(shown, printed, code).problem()


def test_the_parameters_are_listed_as_they_are() -> None:
    text = (ROOT / "docs" / "modelfile.md").read_text(encoding="utf-8")
    rows = [tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in text.splitlines() if "|" in line]
    assert [row for row in rows if row[0] in parser.PARAMETERS] == [tuple(row) for row in parser.table()]
    assert all(f"`{name}`" in text for name in parser.deprecated())


def test_every_route_is_described() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    paths = [(method, route.path.replace(":path", "")) for route in ROUTES for method in route.methods - {"HEAD"}]
    assert [f"{method} {path}" for method, path in paths if f"`{method} {path}`" not in text] == []


@pytest.mark.parametrize("name", (*RUN, *PROSE))
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    links = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_example_is_a_modelfile_without_warnings() -> None:
    path = ROOT / "Modelfile.example"
    modelfile = parser.parse(path.read_text(encoding="utf-8"), path.name)
    assert [node.effective_name for node in modelfile.adapters] == ["pirate", "json", "shout"]
    assert parser.warnings(modelfile) == ()
