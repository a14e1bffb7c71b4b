"""The daemon without HTTP, on children that compute nothing: whom a change of mix reaches."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from modelctl.config import Config
from modelctl.daemon.runners import Runners
from modelctl.daemon.service import Job, Service
from modelctl.model import Model
from modelctl.parser import PARAMETERS
from modelctl.runner.frames import Generate, Prompt, Sampling
from modelctl.store import Store
from tests.daemon.test_runners import make_model, with_runners

TUTOR = make_model("tutor", adapters=("pirate", "shout"))
ENDLESS = "tokens=100000 delay=0.01"


class Answering:
    """Answers under way for one Service."""

    def __init__(self, runners: Runners, tmp: Path = Path("/nonexistent")) -> None:
        self.desk = Service(Config(tmp, tmp, tmp, tmp), Store(tmp), runners)
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, model: Model, *, follows: bool = True, words: str = ENDLESS) -> Job:
        job = Job(model.name, model, self.desk.mixes.current(model), follows, {}, 100)
        self._tasks.append(asyncio.create_task(self._read(job, words)))
        return job

    async def _read(self, job: Job, words: str) -> None:
        async for _ in self.desk.run(job, [Generate(0, Prompt(raw=words))]):
            pass

    async def mix_of(self, job: Job) -> list[list[Any]]:
        """What the runner was told last about it."""
        while job.stream is None:
            await asyncio.sleep(0.01)
        async with self.desk.runners.lease(job.model, {}) as lease:
            mixes: dict[int, list[list[Any]]] = dict((await lease.process.stats()).values["mixes"])
        return mixes[job.stream.ids[0]]

    def change(self, model: Model, **scales: float) -> None:
        self.desk.mixes.change(model, dict(scales))
        self.desk.remix(model)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@with_runners()
async def test_a_change_reaches_those_that_follow_the_model(runners: Runners) -> None:
    answering = Answering(runners)
    following, own = answering.begin(TUTOR), answering.begin(TUTOR, follows=False)
    other = answering.begin(replace(TUTOR, name="copy:latest"))
    made_anew = answering.begin(replace(TUTOR, adapters=TUTOR.adapters[:1]))
    assert await answering.mix_of(following) == []
    answering.change(TUTOR, pirate=0.5)
    assert await answering.mix_of(following) == [["sha256:pirate", 0.5]]
    assert following.scales == {"pirate": 0.5, "shout": 0.0}
    for untouched in (own, other, made_anew):
        assert await answering.mix_of(untouched) == []
    await answering.end()
    answering.change(TUTOR, shout=1)
    assert following.scales == {"pirate": 0.5, "shout": 0.0}


@with_runners()
async def test_one_that_waits_for_its_model_follows_too(runners: Runners) -> None:
    answering = Answering(runners)
    waiting = answering.begin(TUTOR)
    await asyncio.sleep(0)
    assert waiting.stream is None
    answering.change(TUTOR, shout=1)
    assert await answering.mix_of(waiting) == [["sha256:shout", 1.0]]
    await answering.end()


@with_runners()
async def test_one_that_was_about_to_start_follows_too(runners: Runners) -> None:
    answering = Answering(runners)
    job = answering.begin(TUTOR)  # its task has not run yet
    answering.change(TUTOR, shout=1)
    assert await answering.mix_of(job) == [["sha256:shout", 1.0]]
    await answering.end()


def test_every_option_of_sampling_is_a_parameter_with_the_same_default() -> None:
    beyond = {"logit_bias", "logprobs", "grammar", "json_schema"}  # which requests say in other ways
    plain = msgspec.structs.asdict(Sampling())
    named = {name: PARAMETERS[name].default for name in plain if name not in beyond}
    assert {name: value if value != [] else None for name, value in plain.items() if name not in beyond} == named
    options: dict[str, Any] = {
        "deterministic": True,
        "mirostat": 2,
        "dry_multiplier": 0.8,
        "xtc_probability": 0.5,
        "min_tokens": 3,
    }
    options |= {"ignore_eos": True, "stop": ["x"], "top_k": 7}
    job = Job("tutor", TUTOR, {}, True, TUTOR.check_options(options), 100)
    sampling = msgspec.structs.asdict(job.generate(Prompt(raw="hi"), logit_bias={5: 1.0}).sampling)
    assert sampling == {**plain, **options, "logit_bias": {5: 1.0}}


@with_runners()
async def test_embeddings_are_asked_for_in_batches(runners: Runners) -> None:
    answering = Answering(runners)
    job = Job(TUTOR.name, TUTOR, {}, True, {}, 100)
    got = await answering.desk.embed(job, ["a"] * 33)
    assert (len(got.vectors), got.n_tokens) == (33, 33)
    async with runners.lease(TUTOR, {}) as lease:
        assert (await lease.process.stats()).values["embedded"] == [16, 16, 1]
