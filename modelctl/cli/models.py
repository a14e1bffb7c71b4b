"""The names in the store: list, show, cp, rm. They need no daemon."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelctl import config
from modelctl.cli import term
from modelctl.cli.options import Json, open_store
from modelctl.errors import ModelctlError

if TYPE_CHECKING:
    from modelctl.store import Ref


def list_models(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="only names that begin so")] = "",
    as_json: Json = False,
) -> None:
    """List the models in the store, newest first."""
    store = open_store(config.load())
    found, damaged = store.survey()
    refs = [ref for ref in found if ref.name.short.lower().startswith(prefix.lower())]
    if as_json:
        term.print_json([_listed(ref) for ref in refs])
    elif refs:
        term.table(("NAME", "ID", "ADAPTERS", "SIZE", "MODIFIED"), [_row(ref) for ref in refs])
    else:
        term.note(f"no model's name begins with {prefix!r}" if prefix else "no models yet; make one: modelctl create")
    for damage in damaged:
        name = damage.name.short if damage.name else damage.path
        term.note(f"{name} is damaged: {damage.problem}; see: modelctl verify")


def _listed(ref: Ref) -> dict[str, Any]:
    return {
        "name": ref.name.short,
        "digest": str(ref.digest),
        "adapters": _adapter_names(ref),
        "size": ref.manifest.size,
        "modified": ref.modified,
    }


def _row(ref: Ref) -> tuple[object, ...]:
    names = _adapter_names(ref)
    shown = ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")
    return ref.name.short, ref.digest.short, shown or "-", term.size(ref.manifest.size), term.ago(ref.modified)


def _adapter_names(ref: Ref) -> list[str]:
    from modelctl.store import media

    layers = ref.manifest.of_type(media.ADAPTER)
    return [layer.annotations.get(media.ADAPTER_NAME, f"adapter{at}") for at, layer in enumerate(layers)]


def cp(
    source: Annotated[str, typer.Argument(metavar="MODEL")],
    destination: Annotated[str, typer.Argument(metavar="NEW_NAME")],
) -> None:
    """Give a model a second name. Nothing is stored twice."""
    from modelctl.model import resolve

    store = open_store(config.load())
    ref = store.copy(resolve(store, source).name, destination)
    term.say(f"copied {source!r} to {ref.name.short!r}")


def rm(names: Annotated[list[str], typer.Argument(metavar="MODEL")]) -> None:
    """Remove models. `modelctl gc` then frees the space that no other model needs."""
    from modelctl.model import resolve

    settings = config.load()
    store = open_store(settings)
    refs = [resolve(store, name) for name in names]  # all of them exist, or none is removed
    _unload(settings, [ref.name.short for ref in refs])
    for ref in refs:
        store.remove(ref.name)
        term.say(f"deleted {ref.name.short!r}")


def _unload(settings: config.Config, names: list[str]) -> None:
    """As far as a daemon answers; a model that stays loaded until it is idle does no harm."""
    from modelctl.cli import background

    with contextlib.suppress(ModelctlError):
        client = background.answering(settings) if settings.address.is_local else None
        if client:
            for name in names:
                client.unload(name)
