"""`make demo`: one base model in four voices, rescaled live."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelctl import config
from modelctl.api import native
from modelctl.cli import background, term
from modelctl.client import Client
from modelctl.errors import Conflict, ModelctlError, NotFound
from modelctl.model import Model
from modelctl.store import Store

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from fetch_base import SHA256, place  # noqa: E402

MODEL = "tutor"
QUESTION = "What is water made of?"
N_TOKENS = 40  # the base likes to go on
ADAPTERS = ("pirate", "json", "shout")
MIXES: tuple[Mapping[str, float], ...] = ({}, {"pirate": 1}, {"json": 1}, {"shout": 1}, {"pirate": 0.5})


def main() -> None:
    console = Console(highlight=False)
    settings = config.load()
    refuse_to_replace_a_stranger(settings)
    place(ROOT / "examples")
    modelctl("create", MODEL, "-f", "Modelfile.example")
    client = background.reach(settings)
    with console.status("loading the base"):
        client.chat_once(native.ChatRequest(model=MODEL, stream=False))
    before = loaded(client)
    ask_every_mix(client, console)
    if before is not None and loaded(client) == before:
        pid, _ = before
        say(f"\nOne process ({pid}) gave all five answers. Between them only scales changed; nothing was loaded again.")
    modelctl("lora", "list", MODEL)
    modelctl("ps")
    say_next(settings)


def refuse_to_replace_a_stranger(settings: config.Config) -> None:
    """The demo may make its own model again, but not replace one of the user's that happens to have its name."""
    try:
        model = Model.load(Store(settings.store_root), MODEL)
    except NotFound:
        return
    if model.base_digest != f"sha256:{SHA256}":
        own = "export MODELCTL_HOME=/tmp/modelctl-demo MODELCTL_HOST=127.0.0.1:11500"
        raise Conflict(
            f"there is a model {MODEL!r} already, and it is not the demo's",
            hint=f"run the demo in a home of its own: {own}",
        )


def ask_every_mix(client: Client, console: Console) -> None:
    table = Table("mix", "answer", title=f"{MODEL}: {QUESTION}", title_justify="left")
    for header in ("tokens", "seconds", "tokens/s"):
        table.add_column(header, justify="right")
    say()
    with Live(table, console=console):
        for mix in MIXES:
            table.add_row(*answer(client, mix))


def answer(client: Client, mix: Mapping[str, float]) -> tuple[Text, ...]:
    """Set the model's mix, then ask: a row of the table."""
    scales = [native.LoraScale(name=name, scale=mix.get(name, 0)) for name in ADAPTERS]
    client.set_lora(native.LoraChange(model=MODEL, adapters=scales))
    question = [native.Message(role="user", content=QUESTION)]
    options = {"num_predict": N_TOKENS}
    reply = client.chat_once(native.ChatRequest(model=MODEL, messages=question, options=options, stream=False))
    cells = (
        " ".join(f"{name}={scale:g}" for name, scale in mix.items()) or "base",
        (reply.message.content or "").strip() + (" …" if reply.done_reason == "length" else ""),
        str(reply.eval_count),
        f"{reply.total_duration / 1e9:.1f}",
        f"{reply.eval_count / reply.eval_duration * 1e9:.0f}" if reply.eval_duration else "-",
    )
    return tuple(map(Text, cells))


def loaded(client: Client) -> tuple[int, int] | None:
    """The runner's process id, and how often the daemon has loaded this base. None: it is not in memory."""
    runners = {model.name: (model.runner_pid, model.load_count) for model in client.ps().models}
    return runners.get(f"{MODEL}:latest")


def say_next(settings: config.Config) -> None:
    variables = [name for name in ("MODELCTL_HOME", "MODELCTL_HOST") if os.environ.get(name)]
    say("\nNext:")
    for name in variables:
        say(f"  export {name}={shlex.quote(os.environ[name])}")
    say(f"""\
  source {shlex.quote(os.path.relpath(Path(sys.prefix, "bin", "activate")))}
  modelctl run {MODEL}                        a chat; /lora json=1 changes its voice
  modelctl run {MODEL}+shout "{QUESTION}"
  modelctl lora set pirate=0 json=0.8       for every request from now on

The daemon goes on at {settings.address.url} (process {background.running_pid(settings)}). To stop it: modelctl stop
The model is stored in {settings.store_root}. To remove it: modelctl rm {MODEL} && modelctl gc""")


def say(text: str = "") -> None:
    print(text, flush=True)


def modelctl(*args: str) -> None:
    """A command and what it prints, as if it had been typed."""
    say(f"\n$ modelctl {shlex.join(args)}")
    done = subprocess.run([sys.executable, "-m", "modelctl", *args], cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    try:
        main()
    except ModelctlError as error:
        term.error(error.message, error.hint)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
