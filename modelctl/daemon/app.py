"""The ASGI application: routes, errors, and the guard in front."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from modelctl.daemon.errors import handle
from modelctl.daemon.guard import Guard
from modelctl.daemon.routes import embeddings, generate, lora, metrics, models, openai, tokens
from modelctl.daemon.service import Service
from modelctl.errors import ModelctlError
from modelctl.store import StoreError

TOPICS = (lora, generate, openai, embeddings, tokens, models, metrics)  # tried in turn: the ones in a hurry first
ROUTES = [route for topic in TOPICS for route in topic.ROUTES]


def build(service: Service) -> ASGIApp:
    kinds = (ModelctlError, StoreError, HTTPException, Exception)
    app = Starlette(routes=ROUTES, exception_handlers={kind: handle for kind in kinds})  # noqa: C420 - mypy
    app.router.redirect_slashes = False
    app.state.service = service
    return Guard(app, service.config.origins)
