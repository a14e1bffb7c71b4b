"""A model's adapters and their current scales: /api/lora-adapters, and llama-server's /lora-adapters."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from modelctl.api import native
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.routes import Route, service
from modelctl.errors import BadRequest
from modelctl.model import Model


async def show(request: Request) -> Response:
    model = await _asked_for(request)
    return reply(_listed(model, service(request).mixes.current(model)))


async def change(request: Request) -> Response:
    """For the requests that start afterwards; with `lora_update` "now", for the answers under way too."""
    asked = await read(request, native.LoraChange)
    if asked.lora_update not in (None, "next", "now"):
        raise BadRequest(f'lora_update must be "next" or "now", not {asked.lora_update[:40]!r}')
    desk = service(request)
    model = await desk.model(_plain(asked.model) or desk.only_loaded())
    scales = desk.mixes.change(model, asked.adapters, start=model.default_scales() if asked.reset else None)
    if asked.lora_update == "now":
        desk.remix(model)
    return reply(_listed(model, scales))


async def show_llama(request: Request) -> Response:
    model = await _asked_for(request)
    scales = service(request).mixes.current(model)
    return reply([native.LlamaAdapter(ref.index, ref.name, scales[ref.name]) for ref in model.adapters])


async def change_llama(request: Request) -> Response:
    """Unlisted adapters are off, as llama-server has it; unknown ones are refused, which it does not."""
    listed = await read(request, list[native.LoraScale])
    model = await _asked_for(request)
    service(request).mixes.change(model, listed, start={})
    return reply(native.Success(True))


async def _asked_for(request: Request) -> Model:
    """`?model=`, or the only one loaded."""
    desk = service(request)
    return await desk.model(_plain(request.query_params.get("model", "")) or desk.only_loaded())


def adapters(model: Model, scales: Mapping[str, float]) -> list[native.LoraAdapter]:
    return [
        native.LoraAdapter(
            id=ref.index, name=ref.name, scale=scales[ref.name], default_scale=ref.scale, digest=ref.digest
        )
        for ref in model.adapters
    ]


def _listed(model: Model, scales: Mapping[str, float]) -> native.LoraReply:
    return native.LoraReply(model.name, adapters(model, scales))


def _plain(name: str) -> str:
    if "+" in name:
        raise BadRequest(
            f"expected a model's name without a mix, got {name!r}", hint="the scales to set go into `adapters`"
        )
    return name


ROUTES = [
    Route("/api/lora-adapters", show, methods=["GET"]),
    Route("/api/lora-adapters", change, methods=["POST"]),
    Route("/lora-adapters", show_llama, methods=["GET"]),
    Route("/lora-adapters", change_llama, methods=["POST"]),
]
