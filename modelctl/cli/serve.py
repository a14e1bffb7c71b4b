"""The daemon and what it has loaded: serve, stop, ps, logs."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import config
from modelctl.cli import background, term
from modelctl.cli.options import Json
from modelctl.errors import NotFound, UsageError

if TYPE_CHECKING:
    from modelctl.api import native


def serve() -> None:
    """Run the daemon in the foreground. `run`, `lora` and `ps` start one by themselves."""
    from modelctl import daemon

    settings = config.load()
    if settings.address.scheme != "http" or settings.address.path:
        raise UsageError(
            f"the daemon cannot listen at {settings.address.url}", hint="for serve, MODELCTL_HOST is HOST:PORT"
        )
    raise typer.Exit(daemon.serve(settings, background.pid_file(settings)))


def stop(names: Annotated[list[str] | None, typer.Argument(metavar="MODEL")] = None) -> None:
    """Unload models; without a name, stop the daemon."""
    settings = config.load()
    if not names:
        _stop_daemon(settings)
        return
    client = background.answering(settings)
    if client is None:
        term.note("no daemon is running, so nothing is loaded")
        return
    for name in names:
        client.unload(name)
        term.say(f"unloaded {name!r}")


def _stop_daemon(settings: config.Config) -> None:
    pid = background.stop(settings)
    if pid is not None:
        term.say(f"stopped the daemon (process {pid})")
    elif background.answering(settings):
        url = settings.address.url
        raise NotFound(f"the daemon at {url} was not started from {settings.home}", hint="stop it where it was started")
    else:
        term.say("no daemon is running")


def ps(as_json: Json = False) -> None:
    """List the models in memory."""
    reply = background.reach(config.load()).ps()
    if as_json:
        import msgspec

        term.print_json(msgspec.to_builtins(reply)["models"])
    elif reply.models:
        headers = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "ADAPTERS ON", "UNTIL")
        term.table(headers, [_row(model) for model in reply.models])
        for batches, names in _by_batches(reply.models).items():
            term.note(f"batches of {', '.join(names)}: {batches}")
    else:
        term.note("nothing is loaded; `modelctl run MODEL` loads one")


def _row(model: native.RunningModel) -> tuple[object, ...]:
    on = ", ".join(f"{ref.name}={ref.scale:g}" for ref in model.adapters if ref.scale)
    mix = on or (f"none of {len(model.adapters)}" if model.adapters else "-")
    until = _until(model.expires_at)
    digest = model.digest.removeprefix("sha256:")[:12]
    return model.name, digest, term.size(model.size), model.device or "-", model.context_length, mix, until


def _by_batches(models: list[native.RunningModel]) -> dict[str, list[str]]:
    """How batches run -> the names with adapters that run so."""
    found: dict[str, list[str]] = {}
    for model in models:
        if model.adapters and model.batches:
            found.setdefault(model.batches, []).append(model.name)
    return found


def _until(expires_at: str) -> str:
    from datetime import datetime

    try:
        seconds = datetime.fromisoformat(expires_at).timestamp() - time.time()
    except (ValueError, OverflowError):
        return "-"
    if seconds > 365 * 86400:
        return "for ever"
    return f"in {term.duration(seconds + 1)}" if seconds > 0 else "now"


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on printing what is added")] = False,
    path: Annotated[bool, typer.Option("--path", help="print only where the log is")] = False,
    n_lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="how many of the last lines")] = 100,
) -> None:
    """Print the log of the daemon that was started in the background."""
    file = config.load().log_path
    if path:
        print(file)
    elif file.exists():
        _print_log(file, n_lines, follow)
    else:
        raise NotFound(f"no log at {file}", hint="a daemon that runs in the foreground logs to its own terminal")


def _print_log(path: Path, n_lines: int, follow: bool) -> None:
    with path.open(encoding="utf-8", errors="replace") as log:
        for line in deque(log, maxlen=n_lines):
            term.write(line)
        while follow:
            term.write(log.read())
            time.sleep(0.2)
