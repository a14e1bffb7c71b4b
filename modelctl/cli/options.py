"""What several commands share: options, the store, and which model is meant when none is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelctl.cli import term
from modelctl.cli.adapters import short
from modelctl.config import Config
from modelctl.errors import UsageError

if TYPE_CHECKING:
    from modelctl.client import Client
    from modelctl.store import Store

Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def open_store(settings: Config) -> Store:
    from modelctl.store import Store

    return Store(settings.store_root, waiting=term.note)


def choose_model(settings: Config, client: Client | None) -> str:
    """The model that is meant when none is named: the one created or used last here, else the only one loaded, else the
    only one there is. Says which, on stderr. Raises `UsageError` when that does not settle it."""
    names = [model.name for model in client.tags().models] if client else _stored(settings)
    last = _full(settings.last_model() or "")
    if last in names:
        return _said(last, "used last")
    loaded = [model.name for model in client.ps().models] if client else []
    if len(loaded) == 1:
        return _said(loaded[0], "the only one loaded")
    if len(names) == 1:
        return _said(names[0], "the only one there is")
    if not names:
        raise UsageError("there are no models yet", hint="make one from a Modelfile: modelctl create")
    raise UsageError("which model?", hint=f"name one of {', '.join(map(short, names[:10]))}")


def _stored(settings: Config) -> list[str]:
    return [ref.name.short for ref in open_store(settings).list()]


def _full(name: str) -> str:
    """With its tag, as names are listed."""
    from modelctl.store import ModelName, StoreError

    try:
        return ModelName.parse(name).short
    except StoreError:
        return ""


def _said(name: str, why: str) -> str:
    term.note(f"using {short(name)} ({why})", faint=True)
    return name
