"""The commands that need no daemon."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from modelctl.cli.commands import COMMANDS, load
from modelctl.cli.create import valid_name
from modelctl.config import SETTINGS
from modelctl.parser import PARAMETERS
from tests.cli.conftest import Cli, in_process_of_its_own


def test_create_takes_the_folders_name_and_says_so(work: Path, cli: Cli) -> None:
    done = cli("create")
    assert done.code == 0, done
    assert "model name: my-tutor:latest" in done.out
    assert done.out.count("creating new layer sha256:") + done.out.count("using existing layer sha256:") == 8
    assert "success" in done.out
    assert "modelctl run my-tutor" in done.out
    assert "my-tutor:latest" in cli("list").out


def test_an_explicit_name_wins(work: Path, cli: Cli) -> None:
    assert "model name" not in cli("create", "other:v2", "-f", "Modelfile").out
    assert [model["name"] for model in json.loads(cli("list", "--json").out)] == ["other:v2"]


def test_create_reads_a_modelfile_elsewhere_and_from_stdin(work: Path, cli: Cli, tmp_path: Path) -> None:
    sub = work / "sub"
    sub.mkdir()
    (sub / "Modelfile").write_text("FROM ../base.gguf\n")
    assert cli("create", "a", "-f", "sub/Modelfile").code == 0
    done = in_process_of_its_own("create", "b", "-f", "-", stdin="FROM ./base.gguf\n", cwd=work)
    assert done.code == 0, done
    assert cli("show", "b", "--json").code == 0


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("My Tutor (v2)", "my-tutor-v2"),
        ("a..b", "a.b"),
        ("-x-", "x"),
        ("données", "donn-es"),
        ("x" * 99, "x" * 80),
        ("…", ""),
    ],
)
def test_a_folders_name_made_valid(folder: str, name: str) -> None:
    assert valid_name(folder) == name


def test_the_rule_is_printed_while_every_adapter_is_at_zero(work: Path, cli: Cli) -> None:
    (work / "Modelfile").write_text("FROM ./base.gguf\nADAPTER ./math.gguf\nADAPTER ./math.gguf AS twin\n")
    said = (
        "all 2 adapters are at scale 0, so this is the plain base; turn one on with:\n"
        "  modelctl lora set math=1 -m tutor\n"
    )
    assert said in cli("create", "tutor").out
    assert said in cli("show", "tutor").out
    (work / "Modelfile").write_text("FROM ./base.gguf\nADAPTER ./math.gguf SCALE 0.5\n")
    assert "adapters that are on: math=0.5" in cli("create", "tutor").out


def test_what_has_no_effect_is_said_while_creating(work: Path, cli: Cli) -> None:
    (work / "Modelfile").write_text("FROM ./base.gguf\nPARAMETER low_vram true\n")
    assert "warning: Modelfile:2: low_vram is deprecated" in cli("create").err


def test_list(tutor: str, cli: Cli) -> None:
    cli("cp", "tutor", "me/copy:v1")
    lines = cli("list").out.splitlines()
    assert lines[0].split() == ["NAME", "ID", "ADAPTERS", "SIZE", "MODIFIED"]
    assert {line.split()[0] for line in lines[1:]} == {"tutor:latest", "me/copy:v1"}
    assert "math, twin" in lines[1]
    assert cli("ls").out == cli("list").out
    assert cli("list", "me").out.count("\n") == 2
    assert "begins with 'zzz'" in cli("list", "zzz").err


def test_an_empty_list_says_how_to_begin(cli: Cli) -> None:
    done = cli("list")
    assert (done.code, done.out) == (0, "")
    assert "modelctl create" in done.err
    assert json.loads(cli("list", "--json").out) == []


def test_a_damaged_model_is_named_and_the_others_are_listed(tutor: str, cli: Cli, home: Path) -> None:
    cli("cp", "tutor", "broken")
    (ref,) = (home / "store" / "refs").rglob("broken/latest")
    ref.write_text("{")
    done = cli("list")
    assert "tutor:latest" in done.out
    assert "broken:latest is damaged" in done.err


def test_show(tutor: str, cli: Cli) -> None:
    text = cli("show", "tutor").out
    for part in ("llama", "math", "twin", "temperature", "Be brief.", "{{ .Prompt }}", "MIT", "128"):
        assert part in text
    assert cli("show", "tutor", "--system").out == "Be brief.\n"
    assert cli("show", "tutor", "--template").out == "{{ .Prompt }}\n"
    assert cli("show", "tutor", "--license").out == "MIT\n"
    assert cli("show", "tutor", "--parameters").out.split() == ["temperature", "0.2"]
    assert cli("show", "tutor", "--adapters").out.splitlines()[2].split()[:3] == ["1", "twin", "0.5"]


def test_show_without_a_template_shows_the_bases(work: Path, cli: Cli) -> None:
    (work / "Modelfile").write_text("FROM ./base.gguf\n")
    cli("create", "plain")
    done = cli("show", "plain", "--template")
    assert done.out == "{{ messages[0].content }}\n"
    assert "Jinja" in done.err


def test_a_shown_modelfile_makes_the_model_again(tutor: str, cli: Cli, work: Path) -> None:
    (work / "again").write_text(cli("show", "tutor", "--modelfile").out)
    assert cli("create", "again", "-f", "again").code == 0
    assert cli("show", "again", "--modelfile").out == (work / "again").read_text()


def test_show_as_json_says_everything(tutor: str, cli: Cli) -> None:
    shown = json.loads(cli("show", "tutor", "--json").out)
    assert shown["name"] == "tutor:latest"
    assert [(adapter["name"], adapter["scale"]) for adapter in shown["adapters"]] == [("math", 0.0), ("twin", 0.5)]
    assert shown["parameters"] == {"temperature": 0.2}
    assert shown["modelfile"].startswith("FROM ")


def test_show_without_a_name_takes_the_last_model_and_says_which(tutor: str, cli: Cli) -> None:
    done = cli("show", "--system")
    assert done.out == "Be brief.\n"
    assert "using tutor" in done.err


def test_cp_and_rm(tutor: str, cli: Cli) -> None:
    assert cli("cp", "tutor", "second").out == "copied 'tutor' to 'second:latest'\n"
    assert cli("rm", "tutor", "second").out == "deleted 'tutor:latest'\ndeleted 'second:latest'\n"
    assert json.loads(cli("list", "--json").out) == []


def test_rm_removes_all_or_none(tutor: str, cli: Cli) -> None:
    cli("rm", "tutor", "nosuch").clear_error("model 'nosuch' not found")
    assert "tutor" in cli("list").out


# help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_says_what_each_command_says(name: str) -> None:
    first, *_ = inspect.cleandoc(load(name).help).split("\n\n")
    assert COMMANDS[name].help == " ".join(first.split())


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["help"], []])
def test_help_names_every_command(args: list[str], cli: Cli) -> None:
    done = cli(*args)
    assert (done.code, done.err) == (0 if args else 2, "")
    for name, entry in COMMANDS.items():
        assert (f" {name} " in done.out) != entry.hidden
        assert entry.hidden or entry.help[:30] in done.out


@pytest.mark.parametrize("columns", ["20", "80", "300"])
@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["lora", "set", "-h"], ["lora"]])
def test_help_is_drawn_in_boxes_that_fit(
    args: list[str], columns: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    boxes = [line for line in cli(*args).out.splitlines() if line and not line.startswith(" ")]
    assert {line[0] + line[-1] for line in boxes} == {"╭╮", "││", "╰╯"}
    assert {len(line) for line in boxes} == {max(40, min(int(columns), 100))}


def test_help_without_unicode() -> None:
    done = in_process_of_its_own("lora", "--help", env={"PYTHONIOENCODING": "ascii"})
    assert "+- Commands -" in done.out
    assert done.out.isascii()


def test_a_mistyped_command_is_guessed(cli: Cli) -> None:
    cli("lst").clear_error("no such command 'lst'", "'list'", code=2)
    cli("lora", "sett").clear_error("no such command 'sett'", "'set'", "modelctl lora --help", code=2)
    cli("xyzzy").clear_error("no such command 'xyzzy'", "modelctl --help", code=2)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("modelctl lo", ["lora", "logs"]),
        ("modelctl lora s", ["set"]),
        ("modelctl lora set --no", ["--now"]),
        ("modelctl run --top", ["--top-k", "--top-p"]),
    ],
)
def test_the_shell_completes(line: str, completed: list[str]) -> None:
    env = {"_MODELCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    assert in_process_of_its_own(env=env).out.split() == completed


def test_version(cli: Cli) -> None:
    assert cli("--version").out.startswith("modelctl 0.")


def test_help_on_parameters_and_environment(cli: Cli) -> None:
    text = cli("help", "parameters").out
    assert all(name in text for name, spec in PARAMETERS.items() if not spec.deprecated)
    text = cli("help", "environment").out
    assert all(f"MODELCTL_{key.upper()}" in text for key in SETTINGS)


def test_help_on_a_command(cli: Cli) -> None:
    assert "ADAPTER=SCALE" in cli("help", "lora", "set").out
    cli("help", "nope").clear_error("nope", "create", "parameters", code=2)
    cli("help", "lora", "nope").clear_error("modelctl lora --help", code=2)
    cli("help", "run", "nope").clear_error("modelctl run --help", code=2)


def test_every_parameter_is_an_option_of_run(cli: Cli) -> None:
    text = cli("run", "--help").out
    for name, spec in PARAMETERS.items():
        assert (f"--{name.replace('_', '-')} " in text) != spec.deprecated


def test_info_says_where_things_are(cli: Cli, home: Path) -> None:
    facts = json.loads(cli("info", "--json").out)
    assert facts["models"] == str(home / "store")
    assert facts["gpu_offload"] in (True, False)
    assert facts["daemon_pid"] is None
    assert cli("logs", "--path").out.strip() == facts["log"]
