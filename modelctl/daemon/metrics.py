"""Numbers about the runners, in Prometheus' text format, with a bounded number of series: `MAX_MIXES` mixes a base."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelctl.mix import format_terms
from modelctl.model import AdapterRef

MAX_MIXES = 64
OTHER = "other"

# name -> (key of the runner's stats, or of its counts per mix, help). Those that end in _total only grow.
Table = Mapping[str, tuple[str, str]]
OF_BASE: Table = {
    "steps_total": ("steps", "Batches decoded."),
    "mixed_steps_total": ("mixed_steps", "Of the batches decoded, those of different mixes in one."),
    "rows_total": ("rows", "Tokens decoded, of prompts and of answers."),
    "generated_tokens_total": ("generated", "Tokens of answers."),
    "reserves_total": ("reserves", "Changes of the adapters in llama.cpp, which cost a rebuild of its graphs."),
    "preempted_total": ("preempted", "Answers put back because no memory for tokens was free."),
    "failed_total": ("failed", "Answers that ended in an error."),
    "cache_hits_total": ("cache_hits", "Prompts of which a beginning was known."),
    "cache_saved_tokens_total": ("cache_tokens_saved", "Prompt tokens that were not computed again."),
    "running": ("running", "Answers being generated."),
    "waiting": ("waiting", "Requests that wait for their turn in the runner."),
    "threads": ("threads", "Threads that decode."),
}
OF_MIX: Table = {
    "requests_total": ("requests", "Answers that ended."),
    "answer_tokens_total": ("generated", "Tokens of the answers that ended."),
    "prompt_tokens_total": ("prompt_tokens", "Prompt tokens of the answers that ended."),
    "cached_tokens_total": ("cached_tokens", "Of the prompt tokens, those taken from the cache."),
    "queue_seconds_total": ("queue_ns", "Time that requests waited before their prompt was begun."),
}
HELP = {
    "loads_total": "How often the base was loaded since the daemon started.",
    "in_flight": "Requests being served, or waiting for the base to be loaded.",
    "loaded": "1 for every model name in memory, with the base that it is built on.",
    **{name: words for name, (_, words) in OF_BASE.items()},
    **{f"{kind}_{name}": f"{words} By {kind}." for kind in ("mix", "adapter") for name, (_, words) in OF_MIX.items()},
}


Page = defaultdict[str, list[str]]  # name -> its samples


@dataclass(frozen=True)
class BaseState:
    """A base and its runner. `stats`: what the runner counts; empty when it is not loaded or does not answer."""

    base: str  # digest
    models: tuple[str, ...]
    adapters: tuple[AdapterRef, ...]
    in_flight: int
    loads: int
    stats: Mapping[str, Any]


class Metrics:
    """Remembers how it has spelled adapters and mixes, so that a series keeps its labels."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # adapter digest -> name, no two alike
        self._mixes: dict[str, set[str]] = defaultdict(set)  # base -> the mixes with series of their own

    def text(self, states: Iterable[BaseState]) -> str:
        page: Page = defaultdict(list)
        for state in states:
            for adapter in state.adapters:
                self._learn(adapter)
            self._add(page, state)
        return "".join(f"{line}\n" for name, samples in page.items() for line in (*_head(name), *samples))

    def _learn(self, adapter: AdapterRef) -> None:
        taken = adapter.name in self._names.values()
        self._names.setdefault(adapter.digest, f"{adapter.name}@{adapter.digest[7:15]}" if taken else adapter.name)

    def _add(self, page: Page, state: BaseState) -> None:
        base = state.base.removeprefix("sha256:")[:12]
        _put(page, "loads_total", state.loads, base=base)
        _put(page, "in_flight", state.in_flight, base=base)
        for model in state.models:
            _put(page, "loaded", 1, base=base, model=model)
        for name, (key, _) in OF_BASE.items():
            if key in state.stats:
                _put(page, name, state.stats[key], base=base)
        for kind, groups in zip(("mix", "adapter"), self._counts(state), strict=True):
            for label, counts in groups.items():
                for name, (key, _) in OF_MIX.items():
                    value = counts[key] / 1e9 if key.endswith("_ns") else counts[key]
                    _put(page, f"{kind}_{name}", value, base=base, **{kind: label})

    def _counts(self, state: BaseState) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
        by_mix: dict[str, Counter[str]] = defaultdict(Counter)
        by_adapter: dict[str, Counter[str]] = defaultdict(Counter)
        for entry in state.stats.get("mixes", ()):
            counts = Counter({key: value for key, value in entry.items() if key != "mix"})
            by_mix[self._spell(state.base, entry["mix"])] += counts
            for digest, _ in entry["mix"]:
                by_adapter[self._names.get(digest, digest[:19])] += counts
        return by_mix, by_adapter

    def _spell(self, base: str, mix: Iterable[tuple[str, float]]) -> str:
        spelled = format_terms({self._names.get(digest, digest[:19]): scale for digest, scale in mix})
        known = self._mixes[base]
        if len(known) < MAX_MIXES:
            known.add(spelled)
        return spelled if spelled in known else OTHER


def _head(name: str) -> tuple[str, str]:
    kind = "counter" if name.endswith("_total") else "gauge"
    return f"# HELP modelctl_{name} {HELP[name]}", f"# TYPE modelctl_{name} {kind}"


def _put(page: Page, name: str, value: float, **labels: str) -> None:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    page[name].append(f"modelctl_{name}{{{pairs}}} {value}")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
