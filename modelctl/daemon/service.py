"""What the routes share: a model's name becomes a Model, a request becomes a Job, a Job becomes deltas."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from modelctl.api.native import Lora
from modelctl.config import Config, parse_duration
from modelctl.daemon.catalog import Catalog
from modelctl.daemon.metrics import Metrics
from modelctl.daemon.mixes import Mixes, chosen
from modelctl.daemon.runners import Lease, Runners
from modelctl.daemon.streams import Direct, Stream
from modelctl.errors import BadRequest, ModelctlError, RunnerDied
from modelctl.mix import split_model
from modelctl.model import Model
from modelctl.runner.frames import Delta, Embedded, Generate, Prompt, Rendered, Sampling
from modelctl.store import Store

MAX_LOGPROBS = 20
MAX_SCHEMA = 64 << 10  # bytes
BATCH_INPUTS, BATCH_LENGTH = 16, 4000  # inputs and characters of one embedding batch
SAMPLING = frozenset(Sampling.__struct_fields__)


@dataclass(eq=False)
class Job:
    """What a request asks for, checked: a model, a mix, how to load it. It may be refused by the runner alone."""

    asked: str  # the model, as the client spelled it
    model: Model
    scales: dict[str, float]  # by adapter name
    follows: bool  # the scales are the model's current ones, not the request's own
    options: dict[str, Any]  # the model's parameters and the request's
    n_ctx: int
    keep_alive: float | None = None  # seconds; None: the daemon's
    started: int = field(default_factory=time.perf_counter_ns)
    load_ns: int = 0  # known once it runs
    stream: Stream | None = None  # while it runs

    @property
    def mix(self) -> list[tuple[str, float]]:
        return list(self.model.mix(self.scales).scales)

    def generate(self, prompt: Prompt, *, shift: bool = True, **sampling: Any) -> Generate:
        """The frame, but for its mix, which may change until it is sent. `sampling` goes beyond what options can say:
        json_schema, logprobs, logit_bias."""
        known = {name: self.options[name] for name in SAMPLING if self.options.get(name) is not None}
        return Generate(0, prompt, [], Sampling(**{**known, **sampling}), self.n_ctx, shift)


class Service:
    """The daemon without HTTP."""

    def __init__(self, config: Config, store: Store, runners: Runners) -> None:
        self.config = config
        self.store = store
        self.runners = runners
        self.mixes = Mixes()
        self._catalog = Catalog(store)
        self.metrics = Metrics()
        self._answering: set[Job] = set()

    async def model(self, name: str) -> Model:
        """Raises `NotFound`, or `BadRequest` for what cannot be a name."""
        if not name:
            raise BadRequest("model is required")
        return await self._catalog.model(name)

    async def job(
        self,
        asked: str,
        lora: Lora | None,
        options: Mapping[str, Any] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        keep_alive: object = None,
    ) -> Job:
        """`asked` may carry a mix, `tutor+math=0.7`; `lora` is one too, and wins. `defaults` are for options that
        neither the request nor the model sets. Raises `NotFound`, or `BadRequest` for a wrong mix or option."""
        name, spelled = split_model(asked)
        model = await self.model(name)
        scales = chosen(model, self.mixes.current(model), spelled, lora)
        checked = {**(defaults or {}), **model.check_options(options or {})}
        n_ctx = checked.get("num_ctx") or self.config.n_ctx
        kept = None if keep_alive is None else parse_duration(keep_alive)
        return Job(asked, model, scales, lora is None and spelled is None, checked, n_ctx, kept)

    async def run(
        self, job: Job, generations: Sequence[Generate], direct: Direct | None = None
    ) -> AsyncIterator[Delta]:
        """The deltas of the answers, each with its generation's place as its id. To stop early, close the iterator.
        After the first, `direct` may take some, never the last, before they come out here.

        A runner that dies before it said anything is replaced, once: it may have been dead when the request came.
        """
        if job.follows:
            job.scales = self.mixes.current(job.model)  # it may have changed since, and from now on we are told
        self._answering.add(job)
        try:
            for last_try in (False, True):
                async with self._lease(job) as lease:
                    stream = self._submit(job, generations, lease)
                    silent = True
                    try:
                        async for delta in stream:
                            silent = False
                            yield delta
                            stream.direct = direct
                        return
                    except RunnerDied:
                        if last_try or not silent or lease.process.stopping:
                            raise
                    finally:
                        stream.close()
        finally:
            self._answering.discard(job)

    def _submit(self, job: Job, generations: Sequence[Generate], lease: Lease) -> Stream:
        for generation in generations:
            generation.mix = job.mix
        job.stream = lease.process.submit(generations, job.model.name)
        return job.stream

    def remix(self, model: Model) -> None:
        """The answers under way that follow this model's current mix go on under it, from their next token. Those that
        began before the name was made anew with other adapters do not follow it any more."""
        scales = self.mixes.current(model)
        for job in self._answering:
            if job.follows and job.model.name == model.name and job.model.adapters == model.adapters:
                job.scales = dict(scales)
                if job.stream is not None:
                    job.stream.remix(job.mix)

    async def embed(self, job: Job, inputs: Sequence[str], *, truncate: bool = True) -> Embedded:
        """[n_inputs][n_embd], L2 norm 1. Asked for in small batches, so that generations go on in between."""
        vectors: list[list[float]] = []
        n_tokens = 0
        async with self._lease(job) as lease:
            for batch in batches(inputs):
                got = await lease.process.embed(batch, job.mix, truncate, job.model.name)
                vectors += got.vectors
                n_tokens += got.n_tokens
        if not all(math.isfinite(sum(vector)) for vector in vectors):
            raise ModelctlError("the model computed NaN", hint="check the scales of the mix")
        return Embedded(0, vectors, n_tokens)

    async def render(self, job: Job, prompt: Prompt) -> Rendered:
        """The prompt as the model would read it."""
        async with self._lease(job) as lease:
            return await lease.process.render(prompt, job.n_ctx, job.model.name)

    async def tokenize(self, job: Job, text: str, *, special: bool, bos: bool) -> list[int]:
        async with self._lease(job) as lease:
            return (await lease.process.tokenize(text, special, bos, job.model.name)).tokens

    async def detokenize(self, job: Job, tokens: list[int]) -> str:
        async with self._lease(job) as lease:
            return (await lease.process.detokenize(tokens, job.model.name)).text

    async def load(self, job: Job) -> None:
        """The model is in memory, for as long as its keep_alive says; 0 means it is not."""
        if job.keep_alive == 0:
            await self.runners.stop(job.model.name)
            return
        async with self._lease(job):
            pass

    @asynccontextmanager
    async def _lease(self, job: Job) -> AsyncIterator[Lease]:
        async with self.runners.lease(job.model, job.options, job.keep_alive) as lease:
            job.load_ns += lease.load_ns
            yield lease

    def only_loaded(self) -> str:
        """The name of the only model in memory, for requests that leave it out. Raises `BadRequest`."""
        names = [entry.model.name for entry in self.runners.loaded()]
        if len(names) == 1:
            return names[0]
        if not names:
            raise BadRequest("model is required: none is loaded")
        raise BadRequest(f"model is required: {', '.join(names)} are loaded")


def batches(inputs: Sequence[str]) -> Iterator[list[str]]:
    """In order; each small enough to be computed in a moment, a long input alone."""
    batch: list[str] = []
    for text in inputs:
        if batch and (len(batch) == BATCH_INPUTS or sum(map(len, batch)) + len(text) > BATCH_LENGTH):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


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
