"""What reaches a terminal, and odd surroundings: pipes that close, other locales, no home, a folder that is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.cli import term
from tests.cli.conftest import Cli, in_process_of_its_own
from tests.cli.terminal import Terminal

HOSTILE = "\x1b]0;owned\x07 \x9b31m \u202egnp.exe \x00 \r over [bold red]markup[/] ${x}"


@given(st.text())
def test_no_text_acts_on_a_terminal(text: str) -> None:
    shown = term.safe(text)
    assert not any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert "\n" not in term.line(text)
    shown.encode()


def test_ordinary_text_stays_as_it_is() -> None:
    text = "naïve 😀 日本語 עברית\n\t[bold]x[/bold] 100% \\n"
    assert term.safe(text) == text


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (98_362_432, "98 MB"),
        (9.94e9, "9.9 GB"),
        (9.96e9, "10 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes(n: float, shown: str) -> None:
    assert term.size(n) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "0 seconds"), (59, "59 seconds"), (60, "1 minute"), (7300, "2 hours"), (200_000, "2 days")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert term.duration(seconds) == shown


@pytest.fixture
def hostile(work: Path, cli: Cli) -> str:
    """A model whose every text tries to act on the terminal, as far as a Modelfile may hold such a text."""
    text = HOSTILE.replace("\x00", "").replace("\r", "")
    (work / "ev\x1b[31mil.gguf").write_bytes((work / "math.gguf").read_bytes())
    (work / "Modelfile").write_text(
        f"FROM ./base.gguf\nADAPTER ./ev\x1b[31mil.gguf AS evil\nSYSTEM {text}\nLICENSE {text}\nTEMPLATE {text}\n"
        f"MESSAGE user {text}\nPARAMETER stop {text}\n"
    )
    assert cli("create", "hostile").code == 0
    return "hostile"


@pytest.mark.parametrize(
    "args",
    [["show", "hostile"], ["list"], ["show", "hostile", "--json"]]
    + [
        ["show", "hostile", f"--{part}"]
        for part in ("system", "license", "template", "parameters", "adapters", "modelfile")
    ],
)
def test_a_hostile_model_is_shown_harmlessly(args: list[str], hostile: str, cli: Cli) -> None:
    done = cli(*args)
    assert done.code == 0
    assert not set(done.out + done.err) & set("\x1b\x07\x9b\u202e\r")
    if args[0] == "show" and args[-1] != "--adapters":
        assert "[bold red]markup[/]" in done.out


def test_a_hostile_modelfile_is_refused_harmlessly(work: Path, cli: Cli) -> None:
    (work / "Modelfile").write_text("FROM ./\x1b[31m.gguf\nADAPTER \x1b]0;x\x07\nFOO \x9b31m\n")
    done = cli("create", "x")
    assert done.code == 1
    assert not set(done.out + done.err) & set("\x1b\x07\x9b")
    done = cli("show", "\x1b[31mred\u202e")
    assert not set(done.out + done.err) & set("\x1b\u202e")


def test_a_terminal_gets_colour_and_a_pipe_does_not(tutor: str, terminal: Callable[..., Terminal], cli: Cli) -> None:
    shown = terminal("list")
    assert shown.wait() == 0
    assert "\x1b[1mNAME" in shown.text
    plain = terminal("list", env={"NO_COLOR": "1"})
    assert plain.wait() == 0
    assert "\x1b" not in plain.text
    assert "\x1b" not in cli("list").out


def test_create_shows_bars_on_a_terminal(
    work: Path, terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = terminal("create", "tutor")
    assert done.wait() == 0
    assert "creating new layer sha256:" in done.text
    assert "success" in done.text


def test_a_reader_that_leaves_is_no_error(tutor: str, cli: Cli) -> None:
    """`modelctl show | head -1`, with more text than a pipe holds."""
    program = [sys.executable, "-m", "modelctl", "help", "parameters"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


def test_a_full_disk_behind_stdout_is_said(tutor: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        program = [sys.executable, "-m", "modelctl", "list"]
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1", "nonsense"])
def test_any_locale(locale: str, work: Path) -> None:
    (work / "Modelfile").write_text("FROM ./base.gguf\nSYSTEM naïve 😀\n", encoding="utf-8")
    for args in (["create", "tutor"], ["show"], ["--help"]):
        done = in_process_of_its_own(*args, env={"LC_ALL": locale, "LANG": locale})
        assert done.code == 0, done
        assert "Traceback" not in done.err


def test_a_terminal_that_cannot_show_a_character(work: Path, cli: Cli) -> None:
    (work / "Modelfile").write_text("FROM ./base.gguf\nSYSTEM 😀\n", encoding="utf-8")
    cli("create", "tutor")
    done = in_process_of_its_own("show", "tutor", "--system", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.out) == (0, "?\n")


@pytest.mark.parametrize(
    ("args", "code"), [(["list"], 0), (["create", "x"], 1), (["create", "x", "-f", "-"], 1), (["show"], 0)]
)
def test_a_current_folder_that_is_gone(args: list[str], code: int, tutor: str, tmp_path: Path) -> None:
    leave = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m modelctl "$@"'
    program = ["sh", "-c", leave, sys.executable, *args]
    done = subprocess.run(program, input=b"FROM x\n", cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr


def test_without_a_home(tutor: str) -> None:
    env = {"PATH": os.environ["PATH"], "MODELCTL_HOME": os.environ["MODELCTL_HOME"]}
    program = [sys.executable, "-m", "modelctl", "list", "--json"]
    done = subprocess.run(program, env=env, capture_output=True, timeout=60, check=True)
    assert [model["name"] for model in json.loads(done.stdout)] == ["tutor:latest"]


def test_a_narrow_umask(work: Path) -> None:
    program = f"umask 077; {sys.executable} -m modelctl create tutor && {sys.executable} -m modelctl show tutor"
    done = subprocess.run(["sh", "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_user_id_without_a_name(tutor: str, home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    # once as root, so that all modules are loaded: somebody else may not be able to read them
    twice = "import os; from modelctl import cli, parser; cli.invoke(['list']); os.setuid(54321); cli.main(['list'])"
    done = subprocess.run([sys.executable, "-c", twice], capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1)


def test_a_bug_is_said_to_be_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelctl.store.Store.survey", lambda self: [][1])
    done = cli("list")
    assert done.code == 1
    assert "this is a bug" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setenv("MODELCTL_DEBUG", "1")
    assert "Traceback" in cli("list").err


def test_ctrl_c_is_quiet(terminal: Callable[..., Terminal], home: Path) -> None:
    log = home / "logs" / "daemon.log"
    log.parent.mkdir(parents=True)
    log.write_text("first \x1b[31mline\n")
    following = terminal("logs", "--follow")
    following.expect("first \\x1b[31mline")
    with log.open("a") as file:
        file.write("second line\n")
    following.expect("second line")
    following.ctrl_c()
    assert following.wait() == 130
    assert "Error" not in following.text
    assert "Traceback" not in following.text
