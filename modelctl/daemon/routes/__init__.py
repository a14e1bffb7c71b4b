"""The routes, one file a topic. A handler reads its body, asks the `Service`, and words the reply."""

from __future__ import annotations

from starlette.requests import Request

from modelctl.daemon.service import Service


def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found
