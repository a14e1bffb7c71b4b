"""Who may talk to the daemon: the check of Host and Origin, in front of every route.

A page on the web can make a browser call 127.0.0.1. DNS rebinding shows in the Host, a call across sites in the Origin
or in Sec-Fetch-Site; all three are checked before anything is read. Programs that are no browsers send no Origin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelctl.daemon.errors import error_response
from modelctl.errors import BadRequest, Forbidden, ModelctlError

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(:\d{1,5})?")
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d{1,5})?")
_APP_ORIGIN = re.compile(r"(app|file|tauri|vscode-webview|vscode-file)://.*")
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, User-Agent, Accept, X-Requested-With, X-Stainless-*",
    "Access-Control-Max-Age": "600",
}


class Guard:
    """ASGI middleware. `origins` are allowed besides the local ones; a `*` in one stands for anything."""

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._origins = [re.compile(re.escape(origin).replace(r"\*", ".*")) for origin in origins]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            _check_host(headers, scope["server"])
            origin = self._checked_origin(headers)
        except ModelctlError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        if origin is not None:
            send = _allowing(origin, send)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204, headers=_preflight(headers))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _checked_origin(self, headers: Headers) -> str | None:
        origins = headers.getlist("origin")
        if not origins:
            if headers.get("sec-fetch-site") == "cross-site":
                raise Forbidden("a page of another site may not call this daemon")
            return None
        if len(origins) > 1 or not self._allows(origins[0]):
            raise Forbidden(
                f"the origin {origins[0][:200]!r} may not call this daemon", hint="MODELCTL_ORIGINS lists who else may"
            )
        return origins[0]

    def _allows(self, origin: str) -> bool:
        patterns = (_LOCAL_ORIGIN, _APP_ORIGIN, *self._origins)
        return any(pattern.fullmatch(origin) for pattern in patterns)


def _check_host(headers: Headers, server: tuple[str, int] | None) -> None:
    """The Host must be this machine's loopback, or the very address the connection came in on."""
    hosts = headers.getlist("host")
    if len(hosts) != 1:
        raise BadRequest(f"expected one Host header, got {len(hosts)}")
    match = _HOST.fullmatch(hosts[0])
    if match is None or match["name"].lower() not in {*_LOCAL_HOSTS, _bracketed(server[0] if server else "")}:
        raise Forbidden(f"the host {hosts[0][:200]!r} is not this daemon", hint="call it by 127.0.0.1 or localhost")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _preflight(headers: Headers) -> dict[str, str]:
    asked = headers.get("access-control-request-headers")
    return {**_PREFLIGHT, "Access-Control-Allow-Headers": asked} if asked else _PREFLIGHT


def _allowing(origin: str, send: Send) -> Send:
    """Tells the browser that pages of this origin may read the reply."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Access-Control-Allow-Origin"] = origin
        await send(message)

    return sending
