"""GET /metrics: what it counts, and that its labels stay few and unambiguous."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from modelctl.daemon.metrics import HELP, MAX_MIXES, OTHER, BaseState, Metrics
from modelctl.model import AdapterRef
from tests.daemon.conftest import Daemon

BASE = "sha256:" + "0123456789abcdef" * 4
LABEL = r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"(modelctl_[a-z_]+)\{{({LABEL}(?:,{LABEL})*)\}} (-?[0-9.]+(?:e-?\d+)?)")


def samples(text: str) -> dict[str, float]:
    """Series -> value. Every line must be well formed, every family in one piece under its HELP and TYPE."""
    found: dict[str, float] = {}
    families: list[str] = []
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            families.append(line.split()[2])
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == families[-1] and kind == ("counter" if name.endswith("_total") else "gauge")
        else:
            match = SAMPLE.fullmatch(line)
            assert match and match[1] == families[-1], line
            series = f"{match[1].removeprefix('modelctl_')}{{{match[2]}}}"
            assert series not in found, series
            found[series] = float(match[3])
    assert len(families) == len(set(families))
    return found


def adapter(name: str, digest: str) -> AdapterRef:
    return AdapterRef(0, name, f"sha256:{digest * 64}", Path(), 0.0, 1)


def state(*adapters: AdapterRef, mixes: list[dict[str, object]]) -> BaseState:
    return BaseState(BASE, ("tutor:latest",), adapters, 2, 1, {"steps": 7, "threads": 2, "mixes": mixes})


def test_mixes_and_adapters_go_by_name() -> None:
    math, art = adapter("math", "a"), adapter("art", "b")
    both = {"mix": [[math.digest, 1.0], [art.digest, 0.5]], "requests": 2, "generated": 30, "queue_ns": 1_500_000_000}
    alone = {"mix": [[math.digest, 1.0]], "requests": 1, "generated": 5}
    nothing = {"mix": [], "requests": 4, "generated": 9}
    found = samples(Metrics().text([state(math, art, mixes=[both, alone, nothing])]))
    base = 'base="0123456789ab"'
    assert found[f"steps_total{{{base}}}"] == 7 and found[f"in_flight{{{base}}}"] == 2
    assert found[f'loaded{{{base},model="tutor:latest"}}'] == 1
    assert found[f'mix_requests_total{{{base},mix="math=1+art=0.5"}}'] == 2
    assert found[f'mix_queue_seconds_total{{{base},mix="math=1+art=0.5"}}'] == 1.5
    assert found[f'mix_answer_tokens_total{{{base},mix="none"}}'] == 9
    assert found[f'adapter_answer_tokens_total{{{base},adapter="math"}}'] == 35
    assert found[f'adapter_requests_total{{{base},adapter="art"}}'] == 2


def test_two_adapters_of_one_name_are_told_apart_and_keep_their_labels() -> None:
    first, second = adapter("math", "a"), adapter("math", "b")
    mixes: list[dict[str, object]] = [{"mix": [[ref.digest, 1.0]], "requests": 1} for ref in (first, second)]
    metrics = Metrics()
    text = metrics.text([state(first, second, mixes=mixes)])
    assert {'adapter="math"', 'adapter="math@bbbbbbbb"'} <= set(re.findall(r'adapter="[^"]*"', text))
    assert samples(metrics.text([state(second, mixes=mixes)])) == samples(text)
    unknown = Metrics().text([state(mixes=mixes)])
    assert 'adapter="sha256:aaaaaaaaaaaa"' in unknown


def test_there_is_no_end_of_scales_but_of_series() -> None:
    math = adapter("math", "a")
    mixes: list[dict[str, object]] = [
        {"mix": [[math.digest, n / 1000]], "requests": 1, "generated": 2} for n in range(1, 501)
    ]
    metrics = Metrics()
    found = samples(metrics.text([state(math, mixes=mixes)]))
    requests = {series: value for series, value in found.items() if series.startswith("mix_requests_total")}
    assert len(requests) == MAX_MIXES + 1 and sum(requests.values()) == 500
    assert requests[f'mix_requests_total{{base="0123456789ab",mix="{OTHER}"}}'] == 500 - MAX_MIXES
    again = samples(metrics.text([state(math, mixes=[*mixes[::-1], {"mix": [], "requests": 1}])]))
    assert again.keys() == found.keys()


def test_what_prometheus_would_misread_is_escaped() -> None:
    odd = BaseState(BASE, ('a"b\\c\nd',), (), 0, 1, {})
    assert 'model="a\\"b\\\\c\\nd"' in Metrics().text([odd])
    assert samples(Metrics().text([odd]))
    assert Metrics().text([]) == ""


def test_the_document_names_every_series() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    named = Counter(re.findall(r"`modelctl_([a-z_]+)", text))
    for name in HELP:
        short = re.sub(r"^(mix|adapter)_", "", name)
        assert named[name] or (named[f"mix_{short}"] and "`modelctl_adapter_" in text), name


def test_a_daemon_at_work(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    assert daemon.get("/metrics").text == ""
    few = {"options": {"num_predict": 4}}
    for _ in range(2):
        daemon.chat("tutor+pirate", "What is the capital of Spain?", **few)
    daemon.chat("tutor+pirate=0.5+json", "What is the capital of Spain?", **few)
    response = daemon.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {re.sub(r'base="[0-9a-f]{12}",?', "", series): value for series, value in samples(response.text).items()}
    assert found["loads_total{}"] == 1 and found["in_flight{}"] == 0
    assert found['mix_requests_total{mix="pirate=1"}'] == 2
    assert found['mix_answer_tokens_total{mix="pirate=1"}'] == 8
    assert found['adapter_requests_total{adapter="pirate"}'] == 3
    assert found['adapter_requests_total{adapter="json"}'] == 1
    assert found["generated_tokens_total{}"] == 12 and found["reserves_total{}"] >= 2
    assert found["cache_hits_total{}"] >= 1 and found["cache_saved_tokens_total{}"] > 10
    assert found["threads{}"] >= 1 and found["steps_total{}"] >= 3
    daemon.post("/api/generate", {"model": "tutor", "keep_alive": 0})
    left = samples(daemon.get("/metrics").text)
    assert {re.sub(r"\{.*", "", series) for series in left} == {"loads_total", "in_flight"}
