"""Runs main.go, which renders templates with the real text/template."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def installed() -> bool:
    return shutil.which("go") is not None


def build(folder: Path) -> Path:
    """The compiled program; `subprocess.CalledProcessError` when Go refuses it."""
    program = folder / "go_golden"
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=HERE, check=True)
    return program


def answers(program: Path, cases: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One answer a case: {"output"} or {"error", "stage"}."""
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([str(program)], input=lines, text=True, check=True, capture_output=True, encoding="utf-8")
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def render(cases: list[dict[str, Any]]) -> list[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        return answers(build(Path(folder)), cases)
