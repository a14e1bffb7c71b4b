"""From a request's settings to a chain of llama.cpp samplers, as plain data."""

from __future__ import annotations

from typing import Any

from modelctl.runner.frames import Sampling

RANDOM_SEED = 0xFFFFFFFF  # llama.cpp: pick one


def is_greedy(s: Sampling) -> bool:
    """Whether the next token is simply the most likely one, so that no chain is needed."""
    return s.temperature <= 0 and not (_penalises(s) or s.dry_multiplier or s.logit_bias or s.grammar)


def chain(s: Sampling) -> list[tuple[Any, ...]]:
    """(name, arguments...) in llama.cpp's usual order; settings that change nothing are left out."""
    out: list[tuple[Any, ...]] = []
    if s.logit_bias:
        out.append(("logit_bias", s.logit_bias))
    if _penalises(s):
        out.append(("penalties", s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty))
    if s.dry_multiplier > 0:
        out.append(("dry", s.dry_multiplier, s.dry_base, s.dry_allowed_length))
    if s.temperature <= 0:
        return [*out, ("greedy",)]
    seed = s.seed & RANDOM_SEED if s.seed >= 0 else RANDOM_SEED
    if s.mirostat:
        name = "mirostat" if s.mirostat == 1 else "mirostat_v2"
        return [*out, ("temperature", s.temperature), (name, seed, s.mirostat_tau, s.mirostat_eta)]
    if s.top_k > 0:
        out.append(("top_k", s.top_k))
    if s.typical_p < 1:
        out.append(("typical_p", s.typical_p))
    if s.top_p < 1:
        out.append(("top_p", s.top_p))
    if s.min_p > 0:
        out.append(("min_p", s.min_p))
    if s.xtc_probability > 0:
        out.append(("xtc", s.xtc_probability, s.xtc_threshold, seed))
    return [*out, ("temperature", s.temperature), ("dist", seed)]


def _penalises(s: Sampling) -> bool:
    return s.repeat_last_n != 0 and (s.repeat_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0)
