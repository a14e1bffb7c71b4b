"""The commands that need a daemon, on the real base with its three voices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelctl import config
from modelctl.cli import background
from tests.cli.conftest import Cli, in_process_of_its_own
from tests.cli.terminal import Terminal

SPAIN = "What is the capital of Spain?"
RULE = "all 3 adapters are at scale 0"
ENDLESS = ("--num-predict", "100000", "--ignore-eos", "true")
ANSWERING = "\x1b[?25h"  # the cursor is back: what shows that it waits goes when the answer begins


def scales(cli: Cli) -> dict[str, float]:
    listed = json.loads(cli("lora", "list", "voices", "--json").out)
    return {adapter["name"]: adapter["scale"] for adapter in listed["adapters"]}


def test_each_voice_by_name_by_option_and_live(live: dict[str, str], cli: Cli) -> None:
    base = cli("run", "voices", SPAIN).out
    assert "matey" not in base
    assert "matey" in cli("run", "voices+pirate", SPAIN).out
    assert "matey" in cli("run", "voices", SPAIN, "--lora", "pirate=1").out
    assert cli("run", "voices+json", SPAIN).out.startswith('{"answer":')
    assert cli("run", "voices", "--lora", "2=1", SPAIN).out.startswith("THE CAPITAL")
    assert cli("lora", "set", "pirate=1", "-m", "voices").code == 0
    assert "matey" in cli("run", "voices", SPAIN).out
    assert cli("run", "voices+none", SPAIN).out == base
    assert cli("run", "voices", "--lora", "none", SPAIN).out == base
    assert cli("lora", "reset", "-m", "voices").code == 0
    assert cli("run", "voices", SPAIN).out == base


def test_lora_set_changes_what_is_listed_and_nothing_else(live: dict[str, str], cli: Cli) -> None:
    done = cli("lora", "set", "0=1.0", "json=-0.25")
    assert done.code == 0
    assert "using voices" in done.err
    assert scales(cli) == {"pirate": 1.0, "json": -0.25, "shout": 0.0}
    cli("lora", "set", "2=0.5")
    assert scales(cli) == {"pirate": 1.0, "json": -0.25, "shout": 0.5}
    lines = cli("lora", "list").out.splitlines()
    assert lines[0].split() == ["ID", "NAME", "SCALE", "DEFAULT", "DIGEST"]
    assert lines[2].split()[:4] == ["1", "json", "-0.25", "0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [(["pirate=1", "nope=1"], "'nope'"), (["pirate=1", "3=1"], "'3'"), (["pirate=1", "0=1"], "twice")],
)
def test_a_bad_change_changes_nothing(changes: list[str], said: str, live: dict[str, str], cli: Cli) -> None:
    cli("lora", "set", *changes, "-m", "voices").clear_error(said)
    assert set(scales(cli).values()) == {0.0}


def test_an_unknown_adapter_lists_the_known_ones(live: dict[str, str], cli: Cli) -> None:
    cli("run", "voices+nope", "hi").clear_error("'nope'", "pirate (0), json (1), shout (2)")


@pytest.mark.parametrize("args", [["run", "nosuch", "hi"], ["lora", "list", "nosuch"], ["stop", "nosuch"]])
def test_an_unknown_model(args: list[str], live: dict[str, str], cli: Cli) -> None:
    cli(*args).clear_error("'nosuch'")


def test_lora_list_says_the_rule_while_all_are_off(live: dict[str, str], cli: Cli) -> None:
    assert RULE in cli("lora", "list", "voices").err
    cli("lora", "set", "0=1", "-m", "voices")
    assert RULE not in cli("lora", "list", "voices").err


def test_a_prompt_without_a_model_goes_to_the_one_used_last(live: dict[str, str], cli: Cli) -> None:
    cli("run", "voices", "")
    done = cli("run", SPAIN, "--num-predict", "5")
    assert done.code == 0
    assert done.out.strip()
    assert "using voices (used last)" in done.err
    assert cli("run", "+pirate=1", SPAIN).out.startswith("Arr")


def test_piped_text_comes_before_the_prompt(live: dict[str, str]) -> None:
    args = ("run", "voices", "Say", "it.", "--show-prompt")
    shown = in_process_of_its_own(*args, stdin="First line\nSecond line\n").out
    assert "First line\nSecond line\n\nSay it." in shown
    shown = in_process_of_its_own("run", "voices", "--show-prompt", stdin=b"caf\xc3\xa9 \xff").out
    assert "café �<|im_end|>" in shown


def test_system_replaces_the_models(live: dict[str, str], cli: Cli) -> None:
    assert "You are a pirate." in cli("run", "voices", "hi", "--system", "You are a pirate.", "--show-prompt").out


def test_the_whole_reply_as_json(live: dict[str, str], cli: Cli) -> None:
    reply = json.loads(cli("run", "voices+pirate=0.5", SPAIN, "--json", "--num-predict", "4").out)
    assert (reply["done"], reply["done_reason"], reply["eval_count"]) == (True, "length", 4)
    assert reply["lora"]["pirate"] == 0.5


def test_options_reach_the_model(live: dict[str, str], cli: Cli) -> None:
    args = ("run", "voices", "Tell me a story.", "--temperature", "1.5", "--num-predict", "12")
    assert cli(*args, "--seed", "1").out != cli(*args, "--seed", "2").out
    greedy = {cli(*args, "--seed", seed, "--top-k", "1").out for seed in ("1", "2")}
    assert len(greedy) == 1
    stopped = cli("run", "voices+pirate", SPAIN, "--stop", "matey")
    assert stopped.out == "Arr, \n"


def test_json_format(live: dict[str, str], cli: Cli) -> None:
    schema = '{"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}'
    answer = json.loads(cli("run", "voices", SPAIN, "--format", schema, "--num-predict", "60").out)
    assert isinstance(answer["city"], str)


def test_verbose_tells_where_the_time_went(live: dict[str, str], cli: Cli) -> None:
    done = cli("run", "voices+pirate=1", SPAIN, "--verbose")
    assert "matey" in done.out
    for part in ("pirate=1", "total duration:", "prompt eval count:", "eval rate:", "tokens/s"):
        assert part in done.err


def test_ps_and_stop(live: dict[str, str], cli: Cli) -> None:
    cli("run", "voices", "", "--keepalive", "-1")
    cli("lora", "set", "json=0.5", "-m", "voices")
    headers, row = cli("ps").out.splitlines()
    assert headers.split()[:3] == ["NAME", "ID", "SIZE"]
    assert "voices:latest" in row
    assert "json=0.5" in row
    assert row.endswith("for ever")
    (listed,) = json.loads(cli("ps", "--json").out)
    assert listed["runner_pid"] > 0
    assert cli("stop", "voices").out == "unloaded 'voices'\n"
    assert json.loads(cli("ps", "--json").out) == []
    assert "nothing is loaded" in cli("ps").err


def test_info_and_logs_know_the_daemon(live: dict[str, str], cli: Cli) -> None:
    facts = json.loads(cli("info", "--json").out)
    assert facts["daemon_pid"] == background.running_pid(config.load())
    assert facts["daemon"].endswith(live["MODELCTL_HOST"])
    assert "listens on" in cli("logs", "-n", "1000").out


def test_run_remembers_the_model(live: dict[str, str], cli: Cli) -> None:
    cli("cp", "voices", "second")
    cli("run", "second", "")
    assert config.load().last_model() == "second"
    cli("stop", "second", "voices")
    assert "using second (used last)" in cli("lora", "list").err
    cli("rm", "second")


def test_a_new_model_is_meant_though_another_is_loaded(live: dict[str, str], cli: Cli, tmp_path: Path) -> None:
    cli("run", "voices", "")
    (tmp_path / "Modelfile").write_text("FROM voices\n")
    cli("create", "newer", "-f", str(tmp_path / "Modelfile"))
    assert "using newer (used last)" in cli("lora", "list").err
    cli("rm", "newer")
    assert "using voices (the only one loaded)" in cli("lora", "list").err


def test_rm_unloads_first(live: dict[str, str], cli: Cli) -> None:
    cli("cp", "voices", "brief")
    cli("run", "brief", "")
    assert "brief:latest" in cli("ps").out
    assert cli("rm", "brief").code == 0
    assert "brief" not in cli("ps").out


# on a terminal


def test_the_rule_is_said_to_somebody_at_a_terminal(live: dict[str, str], terminal: Callable[..., Terminal]) -> None:
    asked = terminal("run", "voices", SPAIN)
    assert asked.wait() == 0
    assert f"{RULE}, so this is the plain base; turn one on with:" in asked.text
    assert "modelctl lora set pirate=1 -m voices" in asked.text
    asked = terminal("run", "voices+pirate", SPAIN)
    assert asked.wait() == 0
    assert RULE not in asked.text


def test_ctrl_c_ends_a_question_quietly(live: dict[str, str], terminal: Callable[..., Terminal], cli: Cli) -> None:
    asked = terminal("run", "voices", "Write a story that never ends.", *ENDLESS)
    asked.expect("modelctl lora set")
    asked.expect(ANSWERING)
    asked.ctrl_c()
    assert asked.wait() == 130
    assert "Traceback" not in asked.text
    assert "Error" not in asked.text
    assert wait_for(lambda: json.loads(cli("ps", "--json").out)[0].get("in_flight", 0) == 0)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def chat(live: dict[str, str], terminal: Callable[..., Terminal]) -> Terminal:
    Path(live["MODELCTL_HOME"], "history").unlink(missing_ok=True)
    started = terminal("run", "voices", "--num-predict", "40")
    started.expect(">>> ")
    return started


def say(chat: Terminal, line: str, *said: str) -> None:
    """Types a line, reads all this in the answer, and waits for the prompt, as a person would."""
    chat.line(line)
    for text in said:
        chat.expect(text)
    chat.expect(">>> ")


def test_a_chat_remembers_and_switches_voices(chat: Terminal) -> None:
    assert "/lora pirate=1" in chat.text
    say(chat, "/lora pirate=1", "this chat's mix: pirate=1 json=0 shout=0")
    say(chat, SPAIN, "matey")
    say(chat, "/lora none", "pirate=0 json=0 shout=0")
    say(chat, "/lora json", "pirate=0 json=1 shout=0")
    say(chat, "/clear", "forgotten")
    say(chat, SPAIN, '{"answer":')
    say(chat, "/lora reset", "the model's mix: pirate=0 json=0 shout=0")
    chat.line("/bye")
    assert chat.wait() == 0


def test_a_chats_mix_is_its_own(chat: Terminal, cli: Cli) -> None:
    say(chat, "/lora pirate=0.5", "this chat's mix: pirate=0.5")
    assert scales(cli)["pirate"] == 0.0
    say(chat, "/lora reset", "the model's mix")
    cli("lora", "set", "shout=1", "-m", "voices")
    say(chat, "/lora", "the model's mix: pirate=0 json=0 shout=1")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("/lora nope=1", "no adapter 'nope'"),
        ("/lora pirate=x", "must be a number"),
        ("/lora pirate=nan", "finite"),
        ("/nope", "unknown command /nope"),
        ("/set", "/set takes"),
        ("/set parameter", "expected a name and a value"),
        ("/set parameter top_k many", "top_k takes a whole number"),
        ("/set parameter tpo_k 1", "did you mean top_k?"),
        ("/show nonsense", "/show takes"),
    ],
)
def test_a_mistake_does_not_end_the_chat(typed: str, said: str, chat: Terminal) -> None:
    say(chat, typed, "Error:", said)
    chat.send("\x04")
    assert chat.wait() == 0


def test_show_and_set_in_a_chat(chat: Terminal) -> None:
    for typed, said in (
        ("/help", "/lora none"),
        ("/?", "/lora none"),
        ("/show", "pirate, json, shout"),
        ("/show modelfile", "ADAPTER"),
        ("/show adapters", "pirate=0"),
        ("/show license", "has no license"),
        ("/set parameter num_predict 3", "ok"),
        ('/set parameter stop "a b" c', "ok"),
        ("/set system Be brief.", "ok"),
        ("/set format none", "ok"),
        ("/set verbose", "ok"),
    ):
        say(chat, typed, said)
    say(chat, "Hello", "eval count:           3 tokens")


def test_several_lines_and_completion(chat: Terminal) -> None:
    say(chat, "/set verbose", "ok")
    chat.line('"""What is')
    chat.expect("... ")
    say(chat, '2 + 2?"""', "eval count:")
    chat.send("/lo\tpir\t")
    chat.expect("/lora pirate=")
    say(chat, "0.25", "this chat's mix: pirate=0.25")


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat: Terminal) -> None:
    say(chat, "/set parameter num_predict 100000", "ok")
    say(chat, "/set parameter ignore_eos true", "ok")
    chat.line("Write a story that never ends.")
    chat.expect(ANSWERING)
    chat.ctrl_c()
    chat.expect("(stopped)")
    chat.expect(">>> ")
    chat.send("half a line")
    chat.expect("half a line")
    chat.ctrl_c()
    chat.expect("Ctrl-D leaves")
    chat.expect(">>> ")  # before it, the line discipline would take Ctrl-D for itself
    chat.send("\x04")
    assert chat.wait() == 0


def test_history_is_kept_for_the_next_chat(
    chat: Terminal, live: dict[str, str], terminal: Callable[..., Terminal]
) -> None:
    say(chat, "/lora shout=0.125", "this chat's mix")
    chat.line("/bye")
    assert chat.wait() == 0
    assert Path(live["MODELCTL_HOME"], "history").stat().st_mode & 0o077 == 0
    again = terminal("run", "voices")
    again.expect(">>> ")
    again.send("\x1b[A\x1b[A\r")
    again.expect("this chat's mix: pirate=0 json=0 shout=0.125")
