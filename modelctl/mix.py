"""Mixes: which adapters are on, and how strongly.

Outside, a mix is spelled with adapter names (`tutor+math=0.7+science=0.3`) or indices (`0=1.0`). Inside, it is a
`Mix`: adapter digests with float32 scales, zeros left out, hashable. Caches, batches and fairness are keyed by it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from modelctl.errors import BadRequest

MAX_SCALE = 100.0
ADAPTER_NAME = re.compile(r"[a-zA-Z0-9_\-.:]+")
NONE = "none"  # `tutor+none` is the bare base, whatever the model's current mix


def float32(value: float) -> float:
    """The nearest float32, the precision llama.cpp keeps scales in."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def check_scale(value: object, adapter: str) -> float:
    """`value` as a float32 scale; `BadRequest` unless it is a finite number with |value| <= 100."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"the scale of adapter {adapter!r} must be a number, not {value!r}")
    if not abs(value) <= MAX_SCALE:  # so written, it refuses NaN too, and an int too large for a float
        raise BadRequest(f"the scale of adapter {adapter!r} must be a finite number from -100 to 100, not {value!r}")
    return float32(value)


def parse_scale(text: str, adapter: str) -> float:
    """The same for a scale that was typed."""
    try:
        value = float(text)
    except ValueError:
        raise BadRequest(f"the scale of adapter {adapter!r} must be a number, not {text!r}") from None
    return check_scale(value, adapter)


@dataclass(frozen=True)
class Mix:
    """The effective set of (adapter digest, scale). Equal mixes compute the same thing."""

    scales: tuple[tuple[str, float], ...] = ()
    BASE: ClassVar[Mix]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, float]]) -> Mix:
        """Canonical form: one entry a digest (two names of one file add up), float32, no zeros, sorted."""
        total: dict[str, float] = {}
        for digest, scale in pairs:
            total[digest] = float32(total.get(digest, 0.0) + scale)
        return cls(tuple(sorted((d, s) for d, s in total.items() if s != 0.0)))

    def __bool__(self) -> bool:
        return bool(self.scales)


Mix.BASE = Mix()


def split_model(spec: str) -> tuple[str, dict[str, float] | None]:
    """`tutor+math=0.7+science` -> ("tutor", {"math": 0.7, "science": 1.0}); `tutor` -> ("tutor", None): the current
    mix; `tutor+none` -> ("tutor", {}): the bare base. Raises `BadRequest`."""
    model, *terms = spec.split("+")
    if not terms:
        return model, None
    if terms == [NONE]:
        return model, {}
    return model, parse_terms(terms, default=1.0)


def parse_terms(terms: Iterable[str], default: float | None = None) -> dict[str, float]:
    """`["0=1.0", "math=0.7"]` -> {"0": 1.0, "math": 0.7}. A bare name takes `default`; without one it is an error."""
    scales: dict[str, float] = {}
    for term in terms:
        name, sign, number = term.partition("=")
        if not ADAPTER_NAME.fullmatch(name):
            raise BadRequest(
                f"expected ADAPTER=SCALE, got {term!r}", hint="for example math=0.7, or 0=1.0 for the first adapter"
            )
        if name in scales:
            raise BadRequest(f"adapter {name!r} is named twice")
        if sign:
            scales[name] = parse_scale(number, name)
        elif default is not None:
            scales[name] = default
        else:
            raise BadRequest(f"expected {name}=SCALE, got {term!r}", hint=f"for example {name}=1.0")
    return scales


def format_terms(scales: Mapping[str, float]) -> str:
    """{"math": 0.7, "science": 0.0} -> "math=0.7"; "none" when nothing is on."""
    return "+".join(f"{name}={scale:g}" for name, scale in scales.items() if scale) or NONE
