"""GET /metrics, for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from modelctl.daemon.routes import Route, service


async def metrics(request: Request) -> Response:
    desk = service(request)
    text = desk.metrics.text(await desk.runners.states())
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = [Route("/metrics", metrics)]
