"""modelctl lora list | set | reset: the mix that new requests get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import config
from modelctl.cli import background, term
from modelctl.cli.adapters import rule, typed_mix
from modelctl.cli.help import BoxedCommand, BoxedGroup
from modelctl.cli.options import Json, choose_model

if TYPE_CHECKING:
    from modelctl.api import native
    from modelctl.client import Client

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="default: the one created or used last, else the only one loaded", metavar="MODEL"
    ),
]

Now = Annotated[bool, typer.Option("--now", help="answers that are being written change too, at their next word")]

topic = typer.Typer(cls=BoxedGroup, help="List and rescale a model's adapters, live.")


@topic.command("list", cls=BoxedCommand)
def list_adapters(
    name: Annotated[str, typer.Argument(metavar="MODEL")] = "",
    model: ModelOption = "",
    as_json: Json = False,
) -> None:
    """List a model's adapters with their current scales."""
    client, target = _target(name or model)
    _print(client.lora(target), as_json)


@topic.command("set", cls=BoxedCommand)
def set_scales(
    changes: Annotated[list[str], typer.Argument(metavar="ADAPTER=SCALE", help="0=1.0 json=0.2: index or name")],
    model: ModelOption = "",
    now: Now = False,
    as_json: Json = False,
) -> None:
    """Change scales for all requests from now on. Adapters that are not named keep theirs."""
    from modelctl.api import native

    scales = [native.LoraScale(name=name, scale=scale) for name, scale in typed_mix(changes).items()]
    client, target = _target(model)
    _print(client.set_lora(native.LoraChange(model=target, adapters=scales, lora_update=_update(now))), as_json)


@topic.command("reset", cls=BoxedCommand)
def reset(model: ModelOption = "", now: Now = False, as_json: Json = False) -> None:
    """Set every adapter back to the scale its Modelfile gives it."""
    from modelctl.api import native

    client, target = _target(model)
    change = native.LoraChange(model=target, adapters=[], reset=True, lora_update=_update(now))
    _print(client.set_lora(change), as_json)


def _update(now: bool) -> str | None:
    return "now" if now else None


def _target(name: str) -> tuple[Client, str]:
    settings = config.load()
    client = background.reach(settings)
    return client, name or choose_model(settings, client)


def _print(reply: native.LoraReply, as_json: bool) -> None:
    if as_json:
        import msgspec

        term.print_json(msgspec.to_builtins(reply))
        return
    if not reply.adapters:
        term.note(f"{reply.model} has no adapters; an ADAPTER line in its Modelfile adds one")
        return
    rows = [
        (adapter.id, adapter.name, f"{adapter.scale:g}", f"{adapter.default_scale:g}", adapter.digest[7:19])
        for adapter in reply.adapters
    ]
    term.table(("ID", "NAME", "SCALE", "DEFAULT", "DIGEST"), rows)
    scales = {adapter.name: adapter.scale for adapter in reply.adapters}
    if not any(scales.values()):
        term.note(rule(reply.model, scales), faint=True)
