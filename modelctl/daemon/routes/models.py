"""What is stored and what is loaded: /api/tags, /api/show, /api/ps, /api/copy, /api/delete; the version, and `/`."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from modelctl import __version__, gguf_check
from modelctl.api import native
from modelctl.daemon.answers import timestamp
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.routes import Route, lora, service
from modelctl.daemon.runners import Loaded
from modelctl.errors import BadRequest, ModelctlError, NotFound
from modelctl.model import Model, resolve
from modelctl.store import ModelName, Store

FOR_EVER = 300 * 365 * 86400.0  # seconds ahead; clients want a date


async def root(request: Request) -> Response:
    return PlainTextResponse("modelctl is running")


async def version(request: Request) -> Response:
    return reply(native.VersionReply(__version__))


async def tags(request: Request) -> Response:
    return reply(native.TagsReply(await asyncio.to_thread(_tags, service(request).store)))


def _tags(store: Store) -> list[native.TaggedModel]:
    found = []
    for ref in store.list():
        try:
            model = Model.load(store, ref.name.short)
        except ModelctlError:  # damaged, or deleted meanwhile; it must not hide the others
            continue
        found.append(
            native.TaggedModel(
                name=model.name,
                model=model.name,
                modified_at=timestamp(model.modified),
                size=model.size,
                digest=_hex(model.digest),
                details=_details(model),
            )
        )
    return found


async def show(request: Request) -> Response:
    asked = await read(request, native.NameRequest)
    desk = service(request)
    model = await desk.model(asked.model or asked.name or "")
    info = await asyncio.to_thread(base_info, model.base_path)
    shown = native.ShowReply(
        modelfile=model.modelfile(),
        details=_details(model),
        model_info=info,
        capabilities=["completion", *(["embedding"] if _pools(info) else [])],
        modified_at=timestamp(model.modified),
        license="\n".join(model.licenses),
        parameters=_parameters(model),
        template=model.template or info.get("tokenizer.chat_template") or "",
        system=model.system or "",
        messages=[native.Message(message.role, message.content) for message in model.messages],
        adapters=_shown_adapters(model, desk.mixes.current(model)),
    )
    return reply(shown)


@functools.lru_cache(maxsize=16)  # blobs never change
def base_info(path: Path) -> dict[str, Any]:
    """The base's metadata, arrays left out (null), as Ollama does."""
    header = gguf_check.read_header(path)
    known = {k: None if isinstance(v, gguf_check.Array) else v for k, v in header.metadata.items()}
    return {"general.parameter_count": gguf_check.base_info(header).n_params, **known}


def _pools(info: dict[str, Any]) -> bool:
    """Whether the base was made for embeddings; the others serve them too, but not as well."""
    return bool(info.get(f"{info.get('general.architecture')}.pooling_type"))


def _shown_adapters(model: Model, scales: dict[str, float]) -> list[native.ShownAdapter]:
    return [
        native.ShownAdapter(
            id=ref.index,
            name=ref.name,
            scale=scales[ref.name],
            default_scale=ref.scale,
            digest=ref.digest,
            size=ref.size,
            rank=ref.rank,
            alpha=ref.alpha,
            target_modules=list(ref.target_modules),
            source=ref.source,
        )
        for ref in model.adapters
    ]


def _parameters(model: Model) -> str:
    lines = []
    for name, value in model.parameters.items():
        for item in value if isinstance(value, list) else [value]:
            lines.append(f"{name:<30} {json.dumps(item, ensure_ascii=False)}")
    return "\n".join(lines)


async def ps(request: Request) -> Response:
    desk = service(request)
    now = asyncio.get_running_loop().time()
    batches = {state.base: str(state.stats.get("batches", "")) for state in await desk.runners.states()}
    running = [
        _running(entry, now, desk.mixes.current(entry.model), batches.get(entry.model.base_digest, ""))
        for entry in desk.runners.loaded()
    ]
    return reply(native.PsReply(running))


def _running(entry: Loaded, now: float, scales: dict[str, float], batches: str) -> native.RunningModel:
    left = FOR_EVER if entry.expires == math.inf else entry.expires - now
    return native.RunningModel(
        name=entry.model.name,
        model=entry.model.name,
        size=entry.size,
        digest=_hex(entry.model.digest),
        details=_details(entry.model),
        expires_at=timestamp(time.time() + left),
        size_vram=entry.size if entry.ready.gpu_layers else 0,
        context_length=entry.ready.n_ctx,
        adapters=lora.adapters(entry.model, scales),
        runner_pid=entry.pid,
        load_count=entry.load_count,
        in_flight=entry.users,
        device=entry.ready.device,
        batches=batches,
    )


async def copy(request: Request) -> Response:
    asked = await read(request, native.CopyRequest)
    for what, name in (("source", asked.source), ("destination", asked.destination)):
        if not name:
            raise BadRequest(f"{what} is required")
    await asyncio.to_thread(_copy, service(request).store, asked)
    return Response()


def _copy(store: Store, asked: native.CopyRequest) -> None:
    resolve(store, asked.source)  # so that what is missing is missing in the same words everywhere
    store.copy(asked.source, asked.destination)


async def delete(request: Request) -> Response:
    """Whoever uses the model finishes; then it is unloaded."""
    asked = await read(request, native.NameRequest)
    name = asked.model or asked.name
    if not name:
        raise BadRequest("model is required")
    desk = service(request)
    short = await asyncio.to_thread(_remove, desk.store, name)
    desk.mixes.forget(short)
    await desk.runners.stop(short)
    return Response()


def _remove(store: Store, name: str) -> str:
    """The name as it was stored, whose case may be another."""
    try:
        short = resolve(store, name).name.short
    except (BadRequest, NotFound):
        raise
    except ModelctlError:  # a damaged one can be removed all the same
        short = ModelName.parse(name).short
    store.remove(name)
    return short


def _details(model: Model) -> native.Details:
    said = model.details
    return native.Details(
        format=said.format,
        family=said.family,
        families=[said.family] if said.family else [],
        parameter_size=said.parameter_size,
        quantization_level=said.quantization_level,
    )


def _hex(digest: str) -> str:
    """Ollama shows manifests by the bare hexadecimal digits."""
    return digest.removeprefix("sha256:")


ROUTES = [
    Route("/", root),
    Route("/api/version", version),
    Route("/api/tags", tags),
    Route("/api/ps", ps),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/copy", copy, methods=["POST"]),
    Route("/api/delete", delete, methods=["DELETE"]),
]
