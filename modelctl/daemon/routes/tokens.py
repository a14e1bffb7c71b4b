"""POST /tokenize and /detokenize, in llama-server's shape."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from modelctl.api import native
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.routes import Route, service
from modelctl.errors import BadRequest


async def tokenize(request: Request) -> Response:
    asked = await read(request, native.TokenizeRequest)
    if asked.with_pieces:
        raise BadRequest("with_pieces is not supported", hint="ask /detokenize for the text of each token")
    desk = service(request)
    job = await desk.job(asked.model or desk.only_loaded(), None)
    special, bos = asked.parse_special is not False, bool(asked.add_special)
    return reply(native.TokenizeReply(await desk.tokenize(job, asked.content, special=special, bos=bos)))


async def detokenize(request: Request) -> Response:
    asked = await read(request, native.DetokenizeRequest)
    desk = service(request)
    job = await desk.job(asked.model or desk.only_loaded(), None)
    return reply(native.DetokenizeReply(await desk.detokenize(job, asked.tokens)))


ROUTES = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
