"""The documents as tests: their console blocks are typed into one shell, their Python blocks are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fetch_base import place

ROOT = Path(__file__).parent.parent
URL = "http://127.0.0.1:11435"  # what the documents call; a test's daemon listens elsewhere
_BLOCK = re.compile(r"^```(console|python|Dockerfile)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "@@@"
TIMEOUT = 900  # seconds for a whole document

# What may differ from run to run: numbers and digests, the wording of an answer but not its voice, the columns' widths.
_FREE = (
    (r"Arr, matey![^\"\n]*", "Arr, matey!"),
    (r"(\\?\"answer\\?\": ?\\?\")[^\"\\]*", r"\1said"),
    (r"\b[A-Z]{3,}(?: [A-Z']{2,}){3,}[A-Z .,!]*", "SHOUTED"),
    (r"\b[0-9a-f]{12,64}\b", "0"),
    (r"\d+(?:\.\d+)?", "0"),
    (r"\b(?:just now|0 \w+ ago)", "ago"),
    (r"[ \t]+", " "),
)


@dataclass(frozen=True)
class Command:
    document: str
    line: int
    text: str  # for the shell
    expected: str  # what the document shows; "..." stands for anything; empty: not shown

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Done:
    command: Command
    code: int
    output: str

    def problem(self) -> str | None:
        """None if it ended and said as the document shows. A command whose error is shown fails."""
        shown = self.command.expected
        failing = shown.startswith("Error: ") or "\nError: " in shown
        if (self.code != 0) != failing:
            return f"{self.command}\nexit code {self.code}\n{self.output}"
        if shown and not re.fullmatch(_pattern(shown), _settled(self.output), re.DOTALL):
            return f"{self.command}\n--- shown\n{_settled(shown)}\n--- printed\n{_settled(self.output)}"
        return None


def commands(document: Path) -> list[Command]:
    """In the order of the document."""
    text = document.read_text(encoding="utf-8")
    found: list[Command] = []
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        found += _KINDS[block[1]](str(document.relative_to(ROOT)), line, block[2])
    return found


def _console(document: str, first: int, body: str) -> Iterator[Command]:
    """`$ command`, its lines that go on behind `> `, and below them what it prints."""
    lines = body.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("$ ")]
    assert starts and starts[0] == 0, f"{document}:{first}: a console block begins with a command"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        typed = [lines[start]]
        while start + len(typed) < end and lines[start + len(typed)].startswith("> "):
            typed.append(lines[start + len(typed)])
        shown = "\n".join(lines[start + len(typed) : end])
        yield Command(document, first + start, "\n".join(line[2:] for line in typed), shown)


def _python(document: str, first: int, body: str) -> Iterator[Command]:
    """The comment at its end is what it prints."""
    lines = body.rstrip().splitlines()
    n_shown = next(n for n, line in enumerate(reversed(lines)) if not line.startswith("# "))
    shown = "\n".join(line[2:] for line in lines[len(lines) - n_shown :])
    yield Command(document, first, f"python - <<'END'\n{body}END", shown)


def _modelfile(document: str, first: int, body: str) -> Iterator[Command]:
    """Becomes ./Modelfile, if it is a whole one."""
    if body.startswith("FROM "):
        yield Command(document, first, f"cat > Modelfile <<'END'\n{body}END", "")


_KINDS = {"console": _console, "python": _python, "Dockerfile": _modelfile}


def run(document: Path, folder: Path, environment: dict[str, str]) -> list[Done]:
    """Every command of a document, one after the other in one shell that starts in `folder`."""
    asked = commands(document)
    url = f"http://{environment['MODELCTL_HOST']}"
    texts = [command.text.replace(URL, url) for command in asked]
    script = "".join(f'{{\n{text}\n}} < /dev/null 2>&1\nprintf "\\n{_MARK}%d\\n" $?\n' for text in texts)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    *ended, _ = re.split(rf"\n{_MARK}(\d+)\n", shell.stdout)
    outputs, codes = ended[::2], ended[1::2]
    assert len(codes) == len(asked), f"{document.name}: the shell ended early:\n{shell.stdout}"
    said = [output.replace(url, URL) for output in outputs]
    return [Done(command, int(code), output) for command, code, output in zip(asked, codes, said, strict=True)]


def checkout(folder: Path) -> Path:
    """`folder`, with what the documents take from a checkout."""
    for name in ("examples/adapters", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Modelfile.example", folder)
    place(folder / "examples")
    return folder


def _settled(text: str) -> str:
    text = text.strip("\n")
    for free, fixed in _FREE:
        text = re.sub(free, fixed, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _pattern(shown: str) -> str:
    return ".*".join(re.escape(part) for part in _settled(shown).split("..."))
