"""GET and POST /api/lora-adapters: a model's adapters and their current scales."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelctl.api import native
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.routes import service
from modelctl.errors import BadRequest
from modelctl.model import Model


async def show(request: Request) -> Response:
    desk = service(request)
    model = await desk.model(_plain(request.query_params.get("model", "")) or desk.only_loaded())
    return reply(_listed(model, desk.mixes.current(model)))


async def change(request: Request) -> Response:
    """Takes effect for the requests that start afterwards; nothing is sent to a runner."""
    asked = await read(request, native.LoraChange)
    desk = service(request)
    model = await desk.model(_plain(asked.model) or desk.only_loaded())
    return reply(_listed(model, desk.mixes.change(model, asked.adapters, reset=asked.reset)))


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


PATH = "/api/lora-adapters"
ROUTES = [Route(PATH, show, methods=["GET"]), Route(PATH, change, methods=["POST"])]
