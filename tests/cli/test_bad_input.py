"""Wrong input of every kind: one clear error, the right exit code, nothing half-done."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, free_port, in_process_of_its_own
from tests.gguf_check.gguf_files import tiny_adapter

NAMES = "names look like"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FORM ./base.gguf", ("Modelfile:1:1", "'FORM'", "FROM")),
        ("SYSTEM hi", ("no FROM",)),
        ("", ("empty",)),
        ("FROM ./base.gguf\nADAPTER ./gone.gguf", ("Modelfile:2:9", "no such file")),
        ("FROM ./base.gguf\nADAPTER ./text.gguf", ("Modelfile:2:9", "not a GGUF")),
        ("FROM ./base.gguf\nADAPTER ./gemma.gguf", ("Modelfile:2:9", "gemma", "llama")),
        ("FROM ./base.gguf\nADAPTER ./base.gguf", ("Modelfile:2:9", "FROM line")),
        ("FROM ./math.gguf", ("Modelfile:1:6", "ADAPTER line")),
        ("FROM ./base.gguf\nADAPTER math.gguf\nADAPTER math.gguf", ("Modelfile:3:9", "'math'", "AS ")),
        ("FROM ./base.gguf\nADAPTER math.gguf SCALE nan", ("Modelfile:2:25", "-100 to 100")),
        ("FROM ./base.gguf\nADAPTER math.gguf SCALE 1e9", ("Modelfile:2:25", "-100 to 100")),
        ("FROM /dev/zero", ("device",)),
        ("FROM ./base.gguf\nADAPTER ./fifo", ("FIFO",)),
    ],
)
def test_a_bad_modelfile(text: str, said: tuple[str, ...], work: Path, cli: Cli) -> None:
    (work / "text.gguf").write_text("Hello!")
    tiny_adapter(architecture="gemma").write(work / "gemma.gguf")
    os.mkfifo(work / "fifo")
    (work / "Modelfile").write_text(text)
    cli("create", "never").clear_error(*said)
    assert json.loads(cli("list", "--json").out) == []


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["create", "-f", "gone"], 1, ("gone",)),
        (["lint", "-f", "/dev/zero"], 2, ("not a regular file",)),
        (["create", "-f", "."], 2, ("is a folder", "Modelfile")),
        (["create", "-f", "/dev/zero"], 2, ("not a regular file", "-f -")),
        (["create", "-f", "base.gguf"], 1, ("GGUF", "FROM base.gguf")),
        (["create", "base.gguf"], 2, ("create NAME -f",)),
        (["create", "a+b"], 2, (NAMES,)),
        (["create", "a b"], 2, (NAMES,)),
        (["create", "../x"], 2, (NAMES,)),
        (["run", "nosuch", "hi", "--temperature", "hot"], 2, ("temperature", "'hot'")),
        (["run", "tutor", "hi", "--seed", "1.5"], 2, ("seed",)),
        (["run", "tutor", "hi", "--format", "xml"], 2, ("--format",)),
        (["run", "tutor", "hi", "--keepalive", "1d"], 2, ("--keepalive",)),
        (["run", "tutor", "hi", "--lora", "math=x"], 2, ("'math'", "'x'")),
        (["run", "tutor", "hi", "--lora", "math=nan"], 2, ("'math'", "-100 to 100")),
        (["run", "tutor+math=inf", "hi"], 2, ("'math'",)),
        (["run", "tutor+", "hi"], 2, ("ADAPTER=SCALE",)),
        (["run", "tutor+math", "hi", "--lora", "twin=1"], 2, ("twice",)),
        (["run", "tutor"], 2, ("no prompt",)),
        (["run", "--nope"], 2, ("--nope",)),
        (["lora", "set", "math"], 2, ("math=1.0",)),
        (["lora", "set", "math=nan"], 2, ("finite",)),
        (["lora", "set", "math=1", "math=2"], 2, ("twice",)),
        (["lora", "set"], 2, ("ADAPTER=SCALE",)),
        (["lora", "rescale"], 2, ("rescale",)),
        (["show", "nosuch"], 1, ("model 'nosuch' not found",)),
        (["show", "tutr"], 1, ("did you mean 'tutor'?",)),
        (["show", "a b"], 1, (NAMES,)),
        (["show", "--system", "--json"], 2, ("one thing",)),
        (["rm", "nosuch"], 1, ("model 'nosuch' not found",)),
        (["rm"], 2, ("missing argument",)),
        (["cp", "tutor", "a b"], 1, (NAMES,)),
        (["cp", "nosuch", "x"], 1, ("model 'nosuch' not found",)),
        (["logs", "-n", "-1"], 2, ("-n",)),
        (["logs"], 1, ("no log",)),
        (["craete"], 2, ("create",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_line(args: list[str], code: int, said: tuple[str, ...], tutor: str, cli: Cli) -> None:
    before = cli("list", "--json").out
    cli(*args).clear_error(*said, code=code)
    assert cli("list", "--json").out == before


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MODELCTL_HOST", ":99999"),
        ("MODELCTL_HOST", "ftp://x"),
        ("MODELCTL_KEEP_ALIVE", "1d"),
        ("MODELCTL_NUM_PARALLEL", "0"),
        ("MODELCTL_MAX_QUEUE", "many"),
        ("MODELCTL_CONTEXT_LENGTH", "-1"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    cli("list").clear_error(variable, code=2)


def test_an_empty_store_names_no_model_to_choose(cli: Cli) -> None:
    cli("show").clear_error("no models yet", "modelctl create", code=2)


def test_which_model_when_several_could_be_meant(tutor: str, cli: Cli, home: Path) -> None:
    cli("cp", "tutor", "other")
    (home / "last_model").unlink()
    cli("show").clear_error("which model?", "other", "tutor", code=2)


# the daemon


def test_no_daemon_on_another_machine(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCTL_HOST", f"https://localhost:{free_port()}")
    cli("ps").clear_error("no daemon answers at https://localhost", "MODELCTL_HOST")


def test_stop_without_a_daemon_is_no_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCTL_HOST", f":{free_port()}")
    done = cli("stop")
    assert (done.code, done.out) == (0, "no daemon is running\n")
    assert cli("stop", "tutor").code == 0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """A port where something listens and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("MODELCTL_HOST", f"127.0.0.1:{listener.getsockname()[1]}")
    return listener


def test_the_port_is_taken(taken: socket.socket) -> None:
    with taken:
        in_process_of_its_own("serve").clear_error("in use", "MODELCTL_HOST")


def test_what_listens_there_speaks_no_http(taken: socket.socket, cli: Cli) -> None:
    import threading

    def answer() -> None:
        connection, _ = taken.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"220 mail.example.com ESMTP\r\n")

    with taken:
        threading.Thread(target=answer, daemon=True).start()
        cli("ps").clear_error("does not speak", "MODELCTL_HOST")


def test_serve_cannot_listen_on_https(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCTL_HOST", "https://example.com")
    cli("serve").clear_error("MODELCTL_HOST", code=2)


def test_port_0_cannot_be_found_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCTL_HOST", ":0")
    cli("ps").clear_error("port 0", code=2)
