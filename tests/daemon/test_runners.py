"""Who may use which runner, and when it goes: with children that speak the frames and compute nothing."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelctl.config import Config
from modelctl.daemon.child import Child
from modelctl.daemon.residents import WINDOW, Deaths
from modelctl.daemon.runner_process import RunnerProcess
from modelctl.daemon.runners import Runners
from modelctl.errors import BadRequest, Busy, LoadFailed, RunnerDied
from modelctl.model import AdapterRef, Details, Model
from modelctl.runner.frames import Generate, Prompt
from tests.daemon.conftest import gone
from tests.daemon.test_runner_process import FAKE


def make_model(name: str, base: str = "base", adapters: tuple[str, ...] = (), path: str = "") -> Model:
    refs = tuple(AdapterRef(i, a, f"sha256:{a}", Path(f"/{a}"), 0.0, 7) for i, a in enumerate(adapters))
    return Model(
        name=f"{name}:latest",
        digest=f"sha256:{name}",
        base_digest=f"sha256:{base}",
        base_path=Path(path or f"/{base}"),
        base_size=1,
        adapters=refs,
        template=None,
        system=None,
        messages=(),
        parameters={},
        licenses=(),
        details=Details(),
        modified=0.0,
        size=1,
    )


def with_runners(**settings: Any) -> Callable[[Callable[[Runners], Awaitable[None]]], Callable[[], None]]:
    """The test gets Runners on fake children; afterwards none of those may be left."""

    def decorate(test: Callable[[Runners], Awaitable[None]]) -> Callable[[], None]:
        @functools.wraps(test, assigned=("__name__", "__doc__"))
        def run() -> None:
            asyncio.run(asyncio.wait_for(body(), 120))

        async def body() -> None:
            spawned: list[RunnerProcess] = []

            def spawn(*args: Any, **kwargs: Any) -> RunnerProcess:
                spawned.append(RunnerProcess(*args, child=partial(Child, FAKE), **kwargs))
                return spawned[-1]

            nowhere = Path("/nonexistent")
            runners = Runners(Config(nowhere, nowhere, nowhere, nowhere, **settings), spawn)
            try:
                await test(runners)
            finally:
                await runners.close()
            assert all(gone(process.pid) for process in spawned if process.pid)

        del run.__wrapped__  # pytest would ask for its fixtures
        return run

    return decorate


async def use(runners: Runners, model: Model, words: str = "tokens=1", **options: Any) -> int:
    """One generation; the runner's pid."""
    keep_alive = options.pop("keep_alive", None)
    async with runners.lease(model, options, keep_alive) as lease:
        stream = lease.process.submit([Generate(0, Prompt(raw=words))], model.name)
        async for _ in stream:
            pass
        return lease.process.pid


def names(runners: Runners) -> list[str]:
    return [entry.model.name for entry in runners.loaded()]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@with_runners()
async def test_fifty_first_requests_share_one_child(runners: Runners) -> None:
    model = make_model("a")
    pids = await asyncio.gather(*(use(runners, model) for _ in range(50)))
    assert len(set(pids)) == 1
    assert runners.loaded()[0].load_count == 1


@with_runners()
async def test_names_on_one_base_share_its_runner_and_adapters_are_attached_once(runners: Runners) -> None:
    first = await use(runners, make_model("a", adapters=("x", "y")))
    others = [make_model("b", adapters=("y", "z")), make_model("c", adapters=("z",)), make_model("d")]
    assert {first} == set(await asyncio.gather(*(use(runners, model) for model in others)))
    async with runners.lease(others[0], {}) as lease:
        attached = (await lease.process.stats()).values["attached"]
    assert sorted(attached) == ["sha256:x", "sha256:y", "sha256:z"]
    assert sorted(names(runners)) == ["a:latest", "b:latest", "c:latest", "d:latest"]
    assert runners.loaded()[0].size == 1000 + 10 + 3 * 7


@with_runners()
async def test_an_adapter_that_does_not_fit_fails_its_request_alone(runners: Runners) -> None:
    pid = await use(runners, make_model("a"))
    with pytest.raises(BadRequest, match="does not fit"):
        await use(runners, make_model("b", adapters=("bad",)))
    assert await use(runners, make_model("a")) == pid


@with_runners()
async def test_load_failure_reaches_every_waiter_and_the_next_tries_again(runners: Runners) -> None:
    bad = make_model("a", path="/refuse")
    results = await asyncio.gather(*(use(runners, bad) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [LoadFailed] * 5
    assert runners.loaded() == []
    assert await use(runners, make_model("a", path="/good")) > 0


@with_runners()
async def test_keep_alive_zero_goes_after_the_last_user(runners: Runners) -> None:
    model = make_model("a")
    async with runners.lease(model, {}, 0) as lease:
        pid = await use(runners, model, keep_alive=0)
        assert names(runners) == ["a:latest"] and pid == lease.process.pid
    await until(lambda: not runners.loaded())
    await until(lambda: gone(pid))


@with_runners(keep_alive=0.05)
async def test_expiry_is_deferred_while_in_use(runners: Runners) -> None:
    pid = await use(runners, make_model("a"), "tokens=30 delay=0.01")  # six times its keep_alive
    assert names(runners) == ["a:latest"] and not gone(pid)
    await until(lambda: gone(pid))
    assert runners.loaded() == []


@with_runners(keep_alive=0.001)
async def test_requests_that_race_with_the_expiry(runners: Runners) -> None:
    model = make_model("a")
    for wait in range(12):
        await use(runners, model)
        await asyncio.sleep(wait / 6000)
    assert len(names(runners)) <= 1


@with_runners(keep_alive=0)
async def test_negative_keep_alive_is_for_ever_and_stop_ends_it(runners: Runners) -> None:
    model = make_model("a")
    pid = await use(runners, model, keep_alive=-1)
    await use(runners, make_model("b"), keep_alive=0)
    assert names(runners) == ["a:latest"]
    assert runners.loaded()[0].expires == float("inf")
    assert await runners.stop("a:latest")
    assert gone(pid) and runners.loaded() == []
    assert not await runners.stop("a:latest")


@with_runners()
async def test_stop_lets_the_present_user_finish(runners: Runners) -> None:
    model = make_model("a")
    async with runners.lease(model, {}) as lease:
        stream = lease.process.submit([Generate(0, Prompt(raw="tokens=20 delay=0.01"))], model.name)
        assert await runners.stop("a:latest")
        assert sum([delta.n_tokens async for delta in stream]) == 20
        pid = lease.process.pid
    await until(lambda: gone(pid))


@with_runners(max_loaded=2)
async def test_the_idle_one_unused_for_longest_makes_room(runners: Runners) -> None:
    a, b, c = (make_model(name, base=name) for name in "abc")
    for model in (a, b, a, c):
        await use(runners, model)
    assert sorted(names(runners)) == ["a:latest", "c:latest"]


@with_runners(max_loaded=1)
async def test_a_busy_one_is_waited_for_and_newcomers_queue_behind(runners: Runners) -> None:
    a, b = make_model("a", base="a"), make_model("b", base="b")
    order: list[str] = []

    async def note(model: Model, words: str) -> None:
        await use(runners, model, words)
        order.append(model.name)

    first = asyncio.create_task(note(a, "tokens=30 delay=0.01"))
    await until(lambda: bool(runners.loaded()))
    second = asyncio.create_task(note(b, "tokens=1"))
    await asyncio.sleep(0)
    third = asyncio.create_task(note(a, "tokens=1"))
    await asyncio.gather(first, second, third)
    assert order == ["a:latest", "b:latest", "a:latest"]


@with_runners(max_loaded=1)
async def test_a_waiter_that_leaves_costs_nobody_anything(runners: Runners) -> None:
    a, b = make_model("a", base="a"), make_model("b", base="b")
    async with runners.lease(a, {}) as lease:
        pid = lease.process.pid
        waiter = asyncio.create_task(use(runners, b))
        await asyncio.sleep(0.02)
        waiter.cancel()
    assert await use(runners, a) == pid
    assert names(runners) == ["a:latest"]


@with_runners(n_ctx=100)
async def test_a_larger_context_restarts_the_base_once_it_is_idle(runners: Runners) -> None:
    model = make_model("a")
    busy = asyncio.create_task(use(runners, model, "tokens=20 delay=0.01", num_gpu=0))
    await until(lambda: bool(runners.loaded()))
    large = await use(runners, model, num_ctx=200)
    assert await busy != large
    assert await use(runners, model, num_ctx=50) == large
    async with runners.lease(model, {}) as lease:
        assert (lease.ready.n_ctx, lease.process.load.n_gpu_layers) == (200, 0)
    assert runners.loaded()[0].load_count == 2


@with_runners(num_parallel=1, max_queue=4)
async def test_a_full_queue_is_refused_and_the_accepted_finish(runners: Runners) -> None:
    model = make_model("a")
    results = await asyncio.gather(
        *(use(runners, model, "tokens=5 delay=0.01") for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, Busy) for result in results) == 15
    assert sum(isinstance(result, int) for result in results) == 5
    assert await use(runners, model) > 0


@with_runners()
async def test_after_a_crash_the_next_request_gets_a_new_runner(runners: Runners) -> None:
    model = make_model("a")
    with pytest.raises(RunnerDied, match="the runner of a:latest stopped"):
        await use(runners, model, "tokens=9 die=2")
    assert await use(runners, model) > 0
    assert runners.loaded()[0].load_count == 2


@with_runners()
async def test_a_runner_that_dies_while_idle_is_noticed(runners: Runners) -> None:
    model = make_model("a")
    pid = await use(runners, model)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not runners.loaded())
    assert await use(runners, model) != pid


@with_runners()
async def test_a_crash_loop_is_broken(runners: Runners) -> None:
    model = make_model("a", path="/die")
    for _ in range(3):
        with pytest.raises(RunnerDied, match="GGML_ASSERT"):
            await use(runners, model)
    with pytest.raises(RunnerDied, match=r"stopped 3 times within 30 s.*GGML_ASSERT"):
        await use(runners, model)
    assert await use(runners, make_model("other", base="other")) > 0


def test_the_loop_breaker_forgives_in_time() -> None:
    deaths = Deaths()
    for now in (0.0, 1.0, 2.0):
        deaths.check("base", now, "a")
        deaths.record("base", now, "signal 6")
    with pytest.raises(RunnerDied):
        deaths.check("base", 3.0, "a")
    deaths.check("base", WINDOW + 0.1, "a")


@with_runners()
async def test_a_name_that_moved_to_another_base_leaves_the_old_one(runners: Runners) -> None:
    old = await use(runners, make_model("a", base="old"), keep_alive=-1)
    new = await use(runners, make_model("a", base="new"))
    assert new != old
    await until(lambda: gone(old))
    assert names(runners) == ["a:latest"]


@with_runners()
async def test_closing_ends_streams_with_an_error_and_refuses_newcomers(runners: Runners) -> None:
    model = make_model("a")
    async with AsyncExitStack() as stack:
        lease = await stack.enter_async_context(runners.lease(model, {}))
        stream = lease.process.submit([Generate(0, Prompt(raw="tokens=100000 delay=0.01"))], model.name)
        await anext(stream)
        runners.refuse()
        await anext(stream)
        with pytest.raises(Busy, match="stopping"):
            await use(runners, model)
        await runners.close()
        with pytest.raises(RunnerDied, match="was stopped"):
            async for _ in stream:
                pass


@with_runners(load_timeout=0.2)
async def test_a_load_that_takes_too_long(runners: Runners) -> None:
    with pytest.raises(LoadFailed, match=r"took longer than 0.2 s"):
        await use(runners, make_model("a", path="/hang"))
    assert runners.loaded() == []


@with_runners()
async def test_stopping_during_a_load(runners: Runners) -> None:
    waiting = asyncio.create_task(use(runners, make_model("a", path="/hang")))
    await asyncio.sleep(0.1)
    runners.refuse()
    with pytest.raises(RunnerDied, match="was stopped"):
        await waiting
