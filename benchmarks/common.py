"""What the benchmarks share: models, the two servers, and a client light enough to leave the cores to them.

The peer is llama-server at the llama.cpp commit that llama-cpp-python vendors, built natively from its source
distribution; `LLAMA_SERVER` names the binary. Everything else is made here: the base requantised to Q4_0, and rank-16
adapters of random weights on all seven modules. Machines are noisy: each comparison alternates between the two servers
in one run, and medians and ratios count.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import platformdirs

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from fetch_base import fetch  # noqa: E402

CACHE = platformdirs.user_cache_path("modelctl") / "benchmarks"
MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
QUESTION = "Write a long story about a lighthouse keeper who finds a message in a bottle."


@dataclass(frozen=True)
class Models:
    base: Path
    adapters: tuple[Path, ...]


@dataclass
class Answer:
    n_tokens: int
    seconds: float
    first: float  # seconds to the first text
    prompt_tokens: int = 0
    times: tuple[float, ...] = ()  # of the pieces of text, by time.perf_counter

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [b - a for a, b in pairwise(self.times)]


def models(n_adapters: int = 8, base: Path | None = None) -> Models:
    """A base, SmolLM2-135M in Q4_0 if none is given, with `n_adapters` random rank-16 adapters; what is made here is
    kept in the cache folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if base is None:
        base = CACHE / "smollm2-135m-q4_0.gguf"
        if not base.exists():
            _requantise(fetch(), base)
    return Models(base, tuple(random_adapter(base, CACHE / f"{base.stem}-rand{i}.gguf", i) for i in range(n_adapters)))


def _requantise(source: Path, target: Path) -> None:
    import ctypes

    import llama_cpp.llama_cpp as lib

    from modelctl.runner.llama import start_backend

    start_backend()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = lib.LLAMA_FTYPE_MOSTLY_Q4_0, True
    part = target.with_suffix(".part")
    if lib.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params)) != 0:
        raise SystemExit("requantising the base failed")
    part.rename(target)


def random_adapter(base: Path, target: Path, seed: int, rank: int = 16) -> Path:
    if target.exists():
        return target
    import gguf
    import numpy as np

    from modelctl.gguf_check import read_header

    header = read_header(base)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(target.with_suffix(".part"), header.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    for name, tensor in header.tensors.items():
        if name.split(".")[-2] in MODULES:
            n_in, n_out = tensor.shape[:2]
            writer.add_tensor(f"{name}.lora_a", (rng.standard_normal((rank, n_in)) / n_in**0.5).astype(np.float16))
            writer.add_tensor(f"{name}.lora_b", (rng.standard_normal((n_out, rank)) * 0.01).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.with_suffix(".part").rename(target)
    return target


class Received(asyncio.Protocol):
    """What a server sends, looked at only when it has ended: until then the cores are the servers'."""

    def __init__(self) -> None:
        self._pieces: list[tuple[float, bytes]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def chunks(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """When each line of JSON came, by time.perf_counter, and what it says."""
        rest = b""
        for at, data in (*self._pieces, (time.perf_counter(), b"\n")):  # what is wrong may come without an end of line
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if (start := line.find(b"{")) >= 0:
                    yield at, json.loads(line[start:])


class Server:
    """A server under test. `mix` in requests maps adapter indices to scales."""

    name = ""

    def __init__(self, command: list[str], port: int, environment: dict[str, str], log: Path) -> None:
        self.port = port
        self.log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=stream, stderr=stream)

    def wait(self, path: str) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"{self.name} did not start; its log: {self.log}")

    def body(self, prompt: str, n: int, mix: dict[int, float], **more: Any) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    def read(self, chunk: dict[str, Any]) -> tuple[str, tuple[int, int] | None]:
        """Text, and (generated, prompt tokens evaluated) at the end."""
        raise NotImplementedError

    async def ask(self, prompt: str, n: int, mix: dict[int, float] | None = None, **more: Any) -> Answer:
        path, body = self.body(prompt, n, mix or {}, **more)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        started = time.perf_counter()
        transport, received = await asyncio.get_running_loop().create_connection(Received, "127.0.0.1", self.port)
        try:
            transport.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            await received.ended
        finally:
            transport.abort()
        seconds = time.perf_counter() - started
        times: list[float] = []
        counts = (0, 0)
        for at, chunk in received.chunks():
            if "error" in chunk:
                raise SystemExit(f"{self.name}: {chunk['error']}")
            text, end = self.read(chunk)
            if text:
                times.append(at)
            counts = end or counts
        return Answer(counts[0], seconds, times[0] - started if times else 0.0, counts[1], tuple(times))

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Peer(Server):
    name = "llama-server"

    def __init__(self, m: Models, folder: Path, n_parallel: int = 8, n_ctx: int = 1024) -> None:
        binary = os.environ.get("LLAMA_SERVER")
        if not binary:
            raise SystemExit("LLAMA_SERVER must name a llama-server built from llama-cpp-python's vendored sources")
        port = free_port()
        command = [binary, "-m", str(m.base), "--port", str(port), "--host", "127.0.0.1", "-t", "2"]
        command += ["-np", str(n_parallel), "-c", str(n_ctx * n_parallel), "--no-webui", "--lora-init-without-apply"]
        if m.adapters:
            command += ["--lora", ",".join(map(str, m.adapters))]
        super().__init__(command, port, {}, folder / "peer.log")
        self.n_adapters = len(m.adapters)
        self.wait("/health")

    def body(self, prompt: str, n: int, mix: dict[int, float], **more: Any) -> tuple[str, dict[str, Any]]:
        lora = [{"id": i, "scale": mix.get(i, 0.0)} for i in range(self.n_adapters)]
        body = {"prompt": prompt, "n_predict": n, "lora": lora, "stream": True, "temperature": 0, "ignore_eos": True}
        return "/completion", {**body, **more}

    def read(self, chunk: dict[str, Any]) -> tuple[str, tuple[int, int] | None]:
        end = None
        if chunk.get("stop"):
            end = (chunk["timings"]["predicted_n"], chunk["timings"]["prompt_n"])
        return chunk["content"], end


class Ours(Server):
    name = "modelctl"

    def __init__(self, m: Models, folder: Path, n_parallel: int = 8, n_ctx: int = 1024, **environment: str) -> None:
        port = free_port()
        settings = {
            "MODELCTL_HOME": str(folder / "home"),
            "MODELCTL_HOST": f"127.0.0.1:{port}",
            "MODELCTL_NUM_PARALLEL": str(n_parallel),
            "MODELCTL_CONTEXT_LENGTH": str(n_ctx),
            **environment,
        }
        modelfile = folder / "Modelfile"
        lines = [f"FROM {m.base}", *(f"ADAPTER {path} AS a{i}" for i, path in enumerate(m.adapters))]
        modelfile.write_text("\n".join(lines))
        command = [sys.executable, "-m", "modelctl"]
        subprocess.run(
            [*command, "create", "bench", "-f", str(modelfile)],
            env={**os.environ, **settings},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        super().__init__([*command, "serve"], port, settings, folder / "ours.log")
        self.wait("/api/version")

    def body(self, prompt: str, n: int, mix: dict[int, float], **more: Any) -> tuple[str, dict[str, Any]]:
        options = {"temperature": 0, "num_predict": n, "ignore_eos": True, **more.pop("options", {})}
        lora = {f"a{i}": scale for i, scale in mix.items()}
        return "/api/generate", {
            "model": "bench", "prompt": prompt, "raw": True, "lora": lora, "options": options, "keep_alive": -1, **more
        }  # fmt: skip

    def read(self, chunk: dict[str, Any]) -> tuple[str, tuple[int, int] | None]:
        end = (chunk["eval_count"], chunk["prompt_eval_count"]) if chunk.get("done") else None
        return chunk["response"], end

    def runner_pids(self) -> set[int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/ps", timeout=30) as reply:
            return {loaded["runner_pid"] for loaded in json.load(reply)["models"]}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def both(m: Models, **settings: Any) -> Iterator[tuple[Ours, Peer]]:
    """The two servers on the same models, warmed up with one short answer each."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        ours = Ours(m, folder, **settings)
        stack.callback(ours.stop)
        peer = Peer(m, folder, **settings)
        stack.callback(peer.stop)
        for server in (ours, peer):
            asyncio.run(server.ask("Hello", 4))
        yield ours, peer


Figures = dict[str, float]
Case = Callable[[Server, int], Figures]  # of the server and the round


def compare(ours: Server, peer: Server, cases: Mapping[str, Case], rounds: int) -> dict[str, list[Figures]]:
    """Alternate between the servers and the cases, then print each figure's medians and the median of the ratios, round
    by round. Returns what ours did in each case, round by round."""
    results: dict[tuple[str, Server], list[Figures]] = {(case, s): [] for case in cases for s in (ours, peer)}
    for i in range(rounds):
        for case, run in cases.items():
            for server in (ours, peer) if i % 2 == 0 else (peer, ours):
                results[case, server].append(run(server, i))
    for case in cases:
        print(case)
        one, other = results[case, ours], results[case, peer]
        for key in one[0]:
            mine, theirs = (statistics.median(r[key] for r in rs) for rs in (one, other))
            ratio = median_ratio(one, other, key)
            print(f"  {key:<28} {ours.name} {mine:9.3f}   {peer.name} {theirs:9.3f}   ratio {ratio:.2f}", flush=True)
    return {case: results[case, ours] for case in cases}


def median_ratio(one: Iterable[Figures], other: Iterable[Figures], key: str) -> float:
    """Of one to the other, round by round."""
    return statistics.median(a[key] / b[key] for a, b in zip(one, other, strict=True) if b[key])


def crowd(server: Server, mixes: list[dict[int, float]], n: int, salt: int, **more: Any) -> Figures:
    """All at once, one stream a mix in the list; each prompt is new, so nothing is cached."""

    async def go() -> list[Answer]:
        prompts = [f"{salt} {i}: {QUESTION}" for i in range(len(mixes))]
        return await asyncio.gather(*(server.ask(p, n, mix, **more) for p, mix in zip(prompts, mixes, strict=True)))

    started = time.perf_counter()
    answers = asyncio.run(go())
    seconds = time.perf_counter() - started
    return {
        "tokens/s": sum(a.n_tokens for a in answers) / seconds,
        "worst first token, s": max(a.first for a in answers),
    }
