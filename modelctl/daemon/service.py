"""What the routes share: a model's name becomes a Model, a request becomes a Job, a Job becomes deltas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from modelctl.api.native import Lora
from modelctl.config import Config, parse_duration
from modelctl.daemon.mixes import Mixes, chosen
from modelctl.daemon.runners import Runners
from modelctl.errors import BadRequest, RunnerDied
from modelctl.mix import split_model
from modelctl.model import Model
from modelctl.runner.frames import Delta, Generate, Prompt, Rendered, Sampling
from modelctl.store import Store

MAX_LOGPROBS = 20
MAX_SCHEMA = 64 << 10  # bytes


@dataclass
class Job:
    """One generation, checked whole: nothing about it can be refused any more but by the runner."""

    asked: str  # the model, as the client spelled it
    model: Model
    scales: dict[str, float]
    options: dict[str, Any]
    sampling: Sampling
    prompt: Prompt
    n_ctx: int
    keep_alive: float | None = None  # seconds; None: the daemon's
    shift: bool = True
    started: int = field(default_factory=time.perf_counter_ns)
    load_ns: int = 0  # known once it runs

    def frame(self) -> Generate:
        mix = list(self.model.mix(self.scales).scales)
        return Generate(0, self.prompt, mix, self.sampling, self.n_ctx, self.shift)


class Service:
    """The daemon without HTTP."""

    def __init__(self, config: Config, store: Store, runners: Runners) -> None:
        self.config = config
        self.store = store
        self.runners = runners
        self.mixes = Mixes()

    async def model(self, name: str) -> Model:
        """Raises `NotFound`, or `BadRequest` for what cannot be a name."""
        if not name:
            raise BadRequest("model is required")
        return await asyncio.to_thread(Model.load, self.store, name)

    async def model_and_scales(self, asked: str, lora: Lora | None) -> tuple[Model, dict[str, float]]:
        """`tutor+math=0.7`, or `tutor` and a `lora` field, which wins, as the model and the scales of the request."""
        name, spelled = split_model(asked)
        model = await self.model(name)
        return model, chosen(model, self.mixes.current(model), spelled, lora)

    def job(
        self,
        asked: str,
        model: Model,
        scales: dict[str, float],
        prompt: Prompt,
        *,
        options: Mapping[str, Any],
        keep_alive: float | None = None,
        json_schema: str = "",
        logprobs: int = -1,
        shift: bool = True,
    ) -> Job:
        """Raises `BadRequest` for a wrong option."""
        checked = model.check_options(options)
        n_ctx = checked.get("num_ctx") or self.config.n_ctx
        known = {name: checked[name] for name in Sampling.__struct_fields__ if checked.get(name) is not None}
        sampling = Sampling(**{**known, "json_schema": json_schema, "logprobs": logprobs})
        return Job(asked, model, scales, checked, sampling, prompt, n_ctx, keep_alive, shift)

    async def run(self, job: Job) -> AsyncIterator[Delta]:
        """The deltas of the answer. To stop it early, close the iterator.

        A runner that dies before it said anything is replaced, once: it may have been dead when the request came.
        """
        for last_try in (False, True):
            async with self.runners.lease(job.model, job.options, job.keep_alive) as lease:
                job.load_ns += lease.load_ns
                stream = lease.process.submit(job.frame(), job.model.name)
                silent = True
                try:
                    async for delta in stream:
                        silent = False
                        yield delta
                    return
                except RunnerDied:
                    if last_try or not silent or lease.process.stopping:
                        raise
                finally:
                    stream.close()

    async def render(self, job: Job) -> Rendered:
        """The prompt as the model would read it."""
        async with self.runners.lease(job.model, job.options, job.keep_alive) as lease:
            return await lease.process.render(job.prompt, job.n_ctx, job.model.name)

    async def load(self, job: Job) -> None:
        """The model is in memory, for as long as its keep_alive says; 0 means it is not."""
        if job.keep_alive == 0:
            await self.runners.stop(job.model.name)
            return
        async with self.runners.lease(job.model, job.options, job.keep_alive) as lease:
            job.load_ns = lease.load_ns

    def only_loaded(self) -> str:
        """The name of the only model in memory, for requests that leave it out. Raises `BadRequest`."""
        names = [entry.model.name for entry in self.runners.loaded()]
        if len(names) == 1:
            return names[0]
        if not names:
            raise BadRequest("model is required: none is loaded")
        raise BadRequest(f"model is required: {', '.join(names)} are loaded")


def keep_alive(value: object) -> float | None:
    """Ollama's forms: seconds, "5m", 0, negative for ever. Raises `BadRequest`."""
    return None if value is None else parse_duration(value)


def logprobs(wanted: bool | None, top: int | None) -> int:
    """-1: none. Raises `BadRequest`."""
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise BadRequest(f"top_logprobs must be a number from 0 to {MAX_LOGPROBS}, not {top}")
    if top and not wanted:
        raise BadRequest("top_logprobs needs logprobs to be true")
    return (top or 0) if wanted else -1


def json_schema(format: object) -> str:
    """`"json"` or a schema as the text of a schema; "" for none. Raises `BadRequest`."""
    if format is None or format == "":
        return ""
    if format == "json":
        return "{}"
    if not isinstance(format, dict):
        raise BadRequest(f'format must be "json" or a JSON schema, not {str(format)[:80]!r}')
    text = msgspec.json.encode(format).decode()
    if len(text) > MAX_SCHEMA:
        raise BadRequest(f"the schema has {len(text)} bytes; the limit is {MAX_SCHEMA}")
    return text


def refuse_unsupported(model: Model, **parts: object) -> None:
    """Raises `BadRequest` for the first part of a request that is there and that no model here can take."""
    for what, value in parts.items():
        if value:
            raise BadRequest(f"{model.name!r} does not support {what}")
