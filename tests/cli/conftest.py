"""Command lines, run in this process, in one of their own, or on a terminal."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelctl import cli as command_line
from tests.cli.terminal import Terminal
from tests.gguf_check.gguf_files import tiny_adapter, tiny_base

ROOT = Path(__file__).parents[2]
TINY_BASE, TINY_ADAPTER = tiny_base().build(), tiny_adapter().build()


# One thread does not wait for others on a busy machine; deterministic, so that answers to one question can be compared.
PARAMETERS = "".join(
    f"PARAMETER {line}\n" for line in ("temperature 0", "num_ctx 1024", "num_thread 1", "deterministic true")
)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def clear_error(self, *said: str, code: int = 1) -> None:
        """It failed with one error, which says all this, and with no stack trace."""
        assert self.code == code, self
        assert self.err.count("Error: ") == 1, self
        assert "Traceback" not in self.err + self.out
        assert "unexpected" not in self.err
        for text in said:
            assert text in self.err, self


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """In this process: fast, but without stdin or a terminal."""

    def run(*args: str) -> Done:
        capsys.readouterr()
        code = command_line.invoke(args)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


def in_process_of_its_own(
    *args: str, stdin: str | bytes = b"", cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "modelctl", *args],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=300,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a small base, two adapters and a Modelfile."""
    folder = tmp_path / "My Tutor"
    folder.mkdir()
    (folder / "base.gguf").write_bytes(TINY_BASE)
    (folder / "math.gguf").write_bytes(TINY_ADAPTER)
    (folder / "Modelfile").write_text(
        "FROM ./base.gguf\nADAPTER ./math.gguf\nADAPTER ./math.gguf AS twin SCALE 0.5\n"
        "PARAMETER temperature 0.2\nSYSTEM Be brief.\nTEMPLATE {{ .Prompt }}\nLICENSE MIT\n"
    )
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tutor(work: Path, cli: Cli) -> str:
    """A model of that Modelfile."""
    assert cli("create", "tutor").code == 0
    return "tutor"


def free_port() -> int:
    """One that stays free until a daemon takes it: the kernel gives connections theirs from 32768 on."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def live_home(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a home with the real base, the model `voices` and, once somebody asks, a daemon."""
    home = tmp_path_factory.mktemp("live")
    environment = {"MODELCTL_HOME": str(home), "MODELCTL_HOST": f"127.0.0.1:{free_port()}"}
    modelfile = home / "Modelfile"
    voices = "".join(f"ADAPTER {ROOT}/examples/adapters/{name}\n" for name in ("pirate", "json", "shout"))
    modelfile.write_text(f"FROM {base}\n{voices}{PARAMETERS}")
    made = in_process_of_its_own("create", "voices", "-f", str(modelfile), env=environment)
    assert made.code == 0, made
    yield environment
    assert in_process_of_its_own("stop", env=environment).code == 0


@pytest.fixture
def live(live_home: dict[str, str], monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Iterator[dict[str, str]]:
    """That environment, for one test, with every adapter at 0 before and after."""
    for name, value in live_home.items():
        monkeypatch.setenv(name, value)
    assert cli("lora", "reset", "-m", "voices").code == 0
    yield live_home


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*args: str, **options: object) -> Terminal:
        started.append(Terminal(*args, **options))  # type: ignore[arg-type]  # passed on as they are
        return started[-1]

    yield start
    for one in started:
        one.close()
