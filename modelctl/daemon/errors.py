"""The one place that turns errors into JSON, Ollama's or OpenAI's."""

from __future__ import annotations

import logging

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from modelctl import store
from modelctl.api import native, openai
from modelctl.errors import BadRequest, Busy, Conflict, Forbidden, ModelctlError, NotFound

log = logging.getLogger("modelctl.daemon")

RETRY_AFTER = "1"  # seconds, for those who find the queue full

_STORE_ERRORS: dict[type[store.StoreError], type[ModelctlError]] = {
    store.InvalidName: BadRequest,
    store.InvalidDigest: BadRequest,
    store.NotFound: NotFound,
    store.Mismatch: BadRequest,
    store.BadSource: BadRequest,
    store.Denied: Forbidden,
    store.Locked: Conflict,
}


def ours(error: Exception) -> ModelctlError:
    """Any error as one of ours; those that nobody foresaw keep their details to the log."""
    match error:
        case ModelctlError():
            return error
        case store.StoreError():
            kind = next((ours for theirs, ours in _STORE_ERRORS.items() if isinstance(error, theirs)), ModelctlError)
            return kind(error.message, hint=error.hint)
        case HTTPException(status_code=404):
            return NotFound(
                "there is nothing at this address", hint="the routes are Ollama's and OpenAI's: /api/… and /v1/…"
            )
        case HTTPException():
            refused = ModelctlError(error.detail)
            refused.status = error.status_code
            return refused
        case _:
            log.error("unforeseen", exc_info=error)
            return ModelctlError("the daemon failed to do this", hint="`modelctl logs` says why; please report it")


def native_body(error: ModelctlError) -> bytes:
    return msgspec.json.encode(native.Error(error.message, error.hint or ""))


def openai_body(error: ModelctlError) -> bytes:
    kind = "api_error"
    if error.status < 500:
        kind = "not_found_error" if error.status == 404 else "invalid_request_error"
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    return msgspec.json.encode(openai.Error(openai.ErrorBody(message, kind)))


def error_response(path: str, error: Exception) -> Response:
    """In the dialect of the path that was called."""
    known = ours(error)
    body = openai_body(known) if path.startswith("/v1/") else native_body(known)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(known, Busy):
        headers["Retry-After"] = RETRY_AFTER
    return Response(body, known.status, headers, "application/json")
