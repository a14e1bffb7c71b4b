"""The routes, one file a topic. A handler reads its body, asks the `Service`, and words the reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette import routing
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from modelctl.daemon.service import Service

SERVICE = "modelctl.service"  # in an ASGI scope

Handler = Callable[[Request], Awaitable[ASGIApp]]


class Route(routing.Route):
    """A path and its handler. What the handler raises is turned into a reply in one place, app.py: Starlette would do
    that for each route too."""

    def __init__(self, path: str, handler: Handler, methods: Sequence[str] = ("GET",)) -> None:
        super().__init__(path, _Endpoint(handler), methods=list(methods))


class _Endpoint:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handler(Request(scope, receive, send))
        await response(scope, receive, send)


def service(request: Request) -> Service:
    found: Service = request.scope[SERVICE]
    return found
