from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from modelctl.daemon import streams
from modelctl.daemon.child import Child, Spare, child_environment
from modelctl.daemon.runner_process import RunnerProcess
from modelctl.daemon.wire import Wire
from modelctl.errors import BadRequest, LoadFailed, ModelctlError, RunnerDied
from modelctl.runner.frames import AdapterFile, Delta, FromRunner, Generate, Load, Prompt, Step, pack
from tests.daemon.conftest import eventually, gone

FAKE = (sys.executable, str(Path(__file__).with_name("fake_runner.py")))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 120)

    asyncio.run(bounded())


@asynccontextmanager
async def started(path: str = "/base", **options: object) -> AsyncIterator[RunnerProcess]:
    process = RunnerProcess(Load(path), "tutor:latest", child=partial(Child, FAKE), **options)  # type: ignore[arg-type]
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


def generate(words: str) -> Generate:
    return Generate(0, Prompt(raw=words))


async def text_of(process: RunnerProcess, words: str) -> str:
    return "".join([delta.text async for delta in process.submit([generate(words)], "tutor:latest")])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_streams_are_told_apart() -> None:
    async def test() -> None:
        async with started() as process:
            texts = await asyncio.gather(*(text_of(process, f"tokens={n}") for n in range(20)))
        assert texts == ["x " * n for n in range(20)]

    run(test)


def test_generations_that_belong_together_share_a_stream_and_the_first_goes_ahead() -> None:
    async def test() -> None:
        async with started() as process:
            words = ["tokens=3 delay=0.01", "tokens=1", "tokens=2"]
            stream = process.submit([generate(text) for text in words], "tutor:latest")
            deltas = [delta async for delta in stream]
        assert deltas[0].id == 0
        counts = [sum(delta.n_tokens for delta in deltas if delta.id == place) for place in range(3)]
        assert counts == [3, 1, 2]
        assert sorted(delta.id for delta in deltas if delta.done) == [0, 1, 2]

    run(test)


def test_one_that_is_refused_ends_all_that_belong_to_it() -> None:
    async def test() -> None:
        async with started() as process:
            words = ["tokens=100000 delay=0.01", "fail=400", "tokens=100000 delay=0.01"]
            stream = process.submit([generate(text) for text in words], "tutor:latest")
            with pytest.raises(BadRequest, match="this prompt is refused"):
                async for _ in stream:
                    pass
            stream.close()
            assert sorted((await process.stats()).values["cancelled"]) == [1, 3]

    run(test)


def test_another_mix_reaches_what_runs_and_what_has_yet_to_start() -> None:
    async def test() -> None:
        async with started() as process:
            stream = process.submit([generate("tokens=100000 delay=0.01") for _ in range(3)], "tutor:latest")
            other = process.submit([generate("tokens=100000 delay=0.01")], "tutor:latest")
            stream.remix([("sha256:a", 0.5)])
            async for delta in stream:
                if delta.id == 2:
                    break
            stream.remix([("sha256:a", 1.0)])
            mixes = dict((await process.stats()).values["mixes"])
            assert [mixes[id] for id in stream.ids] == [[["sha256:a", 1.0]]] * 3
            assert [mixes[id] for id in other.ids] == [[]]
            stream.close()
            stream.remix([("sha256:a", 2.0)])
            assert dict((await process.stats()).values["mixes"]) == mixes

    run(test)


def test_stop_leaves_no_process_and_calls_back_once() -> None:
    async def test() -> None:
        gone: list[RunnerProcess] = []
        async with started(on_exit=gone.append) as process:
            pid = process.pid
            assert alive(pid)
        await process.stop()
        assert gone == [process]
        assert not alive(pid)

    run(test)


def test_a_killed_runner_ends_every_stream_with_one_error() -> None:
    async def test() -> None:
        async with started() as process:
            endless = [
                process.submit([generate("tokens=100000 delay=0.01")], name) for name in ("tutor:latest", "other:v2")
            ]
            for stream in endless:
                await anext(stream)
            os.kill(process.pid, signal.SIGKILL)
            for stream in endless:
                with pytest.raises(RunnerDied, match=rf"the runner of {stream.model} stopped \(signal 9, SIGKILL\)"):
                    async for _ in stream:
                        pass
            with pytest.raises(RunnerDied):
                await text_of(process, "tokens=1")
            with pytest.raises(RunnerDied):
                await process.stats()

    run(test)


def test_deltas_sent_before_the_death_are_delivered() -> None:
    async def test() -> None:
        async with started() as process:
            got = 0
            with pytest.raises(RunnerDied):
                async for _ in process.submit([generate("tokens=9 die=5")], "tutor:latest"):
                    got += 1
            assert got == 5

    run(test)


def test_load_refused() -> None:
    async def test() -> None:
        with pytest.raises(LoadFailed, match="cannot read the base") as caught:
            async with started("/refuse"):
                pass
        assert (caught.value.status, caught.value.hint) == (400, "make it again")

    run(test)


def test_death_during_load_has_the_last_words() -> None:
    async def test() -> None:
        with pytest.raises(RunnerDied, match=r"signal 6, SIGABRT: GGML_ASSERT\(n_dims > 0\) failed"):
            async with started("/die"):
                pass

    run(test)


def test_load_timeout_kills_the_child() -> None:
    async def test() -> None:
        process = RunnerProcess(Load("/hang"), "tutor:latest", child=partial(Child, FAKE), timeout=0.2)
        with pytest.raises(LoadFailed, match=r"loading tutor:latest took longer than 0.2 s"):
            await process.start()
        assert not alive(process.pid)

    run(test)


DAEMON = """
import asyncio, sys
from modelctl.daemon.runner_process import RunnerProcess
from modelctl.runner.frames import Load

async def main():
    process = RunnerProcess(Load(sys.argv[1]), "tutor:latest")
    starting = asyncio.create_task(process.start())
    while not process.pid:
        await asyncio.sleep(0.01)
    print(process.pid, flush=True)
    await starting

asyncio.run(main())
"""


def test_a_runner_in_the_middle_of_a_load_ends_with_its_daemon(tmp_path: Path) -> None:
    """A real one, whose base is a pipe that it opens and waits at for ever."""
    base = tmp_path / "endless.gguf"
    os.mkfifo(base)
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(base)], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        runner = int(daemon.stdout.readline())
        try:
            assert eventually(lambda: "libllama" in Path(f"/proc/{runner}/maps").read_text())
            time.sleep(0.5)  # from the library to the pipe; were it too short, the test would prove less, not fail
            daemon.kill()
            assert eventually(lambda: gone(runner))
        finally:
            daemon.kill()
            if not gone(runner):
                os.kill(runner, signal.SIGKILL)


def test_a_command_that_cannot_run() -> None:
    async def test() -> None:
        process = RunnerProcess(Load("/base"), "tutor:latest", child=partial(Child, ("/nonexistent",)))
        with pytest.raises(LoadFailed, match="No such file"):
            await process.start()

    run(test)


def test_stopped_before_it_started() -> None:
    async def test() -> None:
        process = RunnerProcess(Load("/base"), "tutor:latest", child=partial(Child, FAKE))
        starting = asyncio.create_task(process.start())
        await process.stop()
        with pytest.raises(RunnerDied, match="was stopped"):
            await starting
        assert not process.pid or not alive(process.pid)

    run(test)


def test_closing_a_stream_cancels_it_and_no_other() -> None:
    async def test() -> None:
        async with started() as process:
            endless = process.submit([generate("tokens=100000 delay=0.01")], "tutor:latest")
            await anext(endless)
            other = asyncio.create_task(text_of(process, "tokens=50 delay=0.001"))
            endless.close()
            assert await other == "x " * 50
            stats = (await process.stats()).values
            assert len(stats["cancelled"]) == 1
            generated = stats["generated"]
            assert (await process.stats()).values["generated"] == generated

    run(test)


def test_a_reader_too_slow_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_WAITING", 8)

    async def test() -> None:
        async with started() as process:
            slow = process.submit([generate("tokens=100000 delay=0.0005")], "tutor:latest")
            while not (await process.stats()).values["cancelled"]:
                await asyncio.sleep(0.01)
            with pytest.raises(ModelctlError, match="reads too slowly"):
                async for _ in slow:
                    pass
            assert await text_of(process, "tokens=2") == "x x "

    run(test)


def test_a_refused_request_keeps_its_status_and_hint() -> None:
    async def test() -> None:
        async with started() as process:
            with pytest.raises(BadRequest, match="this prompt is refused") as caught:
                await text_of(process, "fail=400")
            assert caught.value.hint == "write another"
            with pytest.raises(ModelctlError) as odd:
                await text_of(process, "fail=507")
            assert odd.value.status == 507

    run(test)


def test_attach_and_render() -> None:
    async def test() -> None:
        async with started() as process:
            await process.attach([AdapterFile("sha256:a", "/a")], "tutor:latest")
            assert (await process.stats()).values["attached"] == ["sha256:a"]
            assert (await process.render(Prompt(raw="hi"), 0, "tutor:latest")).text == "<hi>"
            with pytest.raises(BadRequest, match="does not fit"):
                await process.attach([AdapterFile("sha256:bad", "/a")], "tutor:latest")

    run(test)


def test_the_child_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")

    async def test() -> None:
        async with started() as process:
            environ = (await process.stats()).values["environ"]
        assert "hunter2" not in str(environ)
        assert environ["GGML_NO_BACKTRACE"] == "1"

    run(test)


def test_environment_keeps_what_the_backends_need() -> None:
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "2", "LD_LIBRARY_PATH": "/l"}
    child = child_environment({**kept, "OPENAI_API_KEY": "k", "PYTHONSTARTUP": "/x"})
    assert {key: child[key] for key in kept} == kept
    assert child.keys() - kept.keys() == {"PYTHONPATH", "GGML_NO_BACKTRACE", "GLIBC_TUNABLES"}


def test_the_child_gives_memory_back_unless_the_user_tunes_glibc() -> None:
    assert child_environment({})["GLIBC_TUNABLES"].startswith("glibc.malloc.mmap_threshold=")
    assert child_environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"})["GLIBC_TUNABLES"] == "glibc.malloc.check=3"


def test_a_spare_is_taken_once_and_a_dead_one_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelctl.daemon.child.REFILL_AFTER", 0.01)

    async def scenario() -> None:
        spare = Spare(FAKE)
        spare.refill_later()
        await asyncio.sleep(0.1)
        waiting = spare._child
        assert waiting is not None
        first = spare.take()
        assert first is waiting
        await asyncio.sleep(0.1)
        dead = spare._child
        assert dead is not None and dead is not first
        dead.kill()
        await dead.exited
        second = spare.take()
        assert second is not dead
        await asyncio.sleep(0.1)
        last = spare._child
        spare.close()
        assert last is not None
        await last.exited
        for child in (first, second):
            child.kill()
            await child.exited

    asyncio.run(scenario())


def test_a_spare_is_not_started_while_requests_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelctl.daemon.child.REFILL_AFTER", 0.01)

    async def scenario() -> None:
        busy = True
        spare = Spare(FAKE, busy=lambda: busy)
        spare.refill_later()
        await asyncio.sleep(0.1)
        assert spare._child is None
        busy = False
        await asyncio.sleep(0.1)
        child = spare._child
        assert child is not None
        spare.close()
        await child.exited

    asyncio.run(scenario())


def test_frames_arrive_in_whatever_pieces_they_come() -> None:
    async def test() -> None:
        got: list[FromRunner] = []
        wire = Wire(got.append, "a runner")
        sent = [Step([Delta(i, "x" * i)]) for i in range(40)]
        data = b"".join(map(pack, sent))
        for size in (1, 2, 3, 5, 7, 4096):
            for at in range(0, len(data), size):
                wire.data_received(data[at : at + size])
            assert got == sent
            got.clear()

    run(test)


@pytest.mark.parametrize("bad", [b"\xff\xff\xff\xff", b"\x01\0\0\0\xc1", pack(Step([]))[:4] + b"\x80" * 20])
def test_a_runner_that_sends_nonsense_is_hung_up_on(bad: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        wire = Wire(lambda _: None, "a runner")
        await asyncio.get_running_loop().create_unix_connection(lambda: wire, sock=ours)
        theirs.sendall(bad)
        await wire.closed
        theirs.close()

    run(test)
    assert "a runner sent a frame that cannot be read" in caplog.text
