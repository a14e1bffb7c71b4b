"""The ASGI application: routes, errors, and the guard in front."""

from __future__ import annotations

from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from modelctl.daemon.errors import error_response
from modelctl.daemon.guard import Guard
from modelctl.daemon.routes import SERVICE, embeddings, generate, lora, metrics, models, openai, tokens
from modelctl.daemon.service import Service

TOPICS = (lora, generate, openai, embeddings, tokens, models, metrics)  # tried in turn: the ones in a hurry first
ROUTES = [route for topic in TOPICS for route in topic.ROUTES]


def build(service: Service) -> ASGIApp:
    return Guard(Application(service), service.config.origins)


class Application:
    """The routes, with the service for them to ask; whatever they raise becomes a reply."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._router = Router(ROUTES, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # the router raises, rather than answers in its own words, where there is an application
        scope[SERVICE] = self._service
        try:
            await self._router(scope, receive, send)
        except Exception as error:
            await error_response(scope["path"], error)(scope, receive, send)
