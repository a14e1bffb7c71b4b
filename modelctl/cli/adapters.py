"""How adapters and mixes are put into words; the one rule about scale 0 is worded here only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelctl.errors import BadRequest, UsageError
from modelctl.mix import NONE, parse_terms, split_model


def short(model: str) -> str:
    """What people type: without `:latest`."""
    return model.removesuffix(":latest")


def rule(model: str, scales: Mapping[str, float], command: str = "modelctl lora set") -> str:
    """The one rule, while all adapters are at 0; else what is on. `scales` must not be empty."""
    on = {name: scale for name, scale in scales.items() if scale}
    if on:
        return f"adapters that are on: {spelled(on)}"
    first = next(iter(scales))
    which = f"the adapter {first} is" if len(scales) == 1 else f"all {len(scales)} adapters are"
    whose = "" if command.startswith("/") else f" -m {short(model)}"
    return f"{which} at scale 0, so this is the plain base; turn one on with:\n  {command} {first}=1{whose}"


def typed_mix(terms: Iterable[str], default: float | None = None) -> dict[str, float]:
    """ADAPTER=SCALE as typed; `default` for a bare name, `none` for no adapter at all. Raises `UsageError`."""
    words = list(terms)
    if words == [NONE] and default is not None:
        return {}
    try:
        return parse_terms(words, default)
    except BadRequest as error:
        raise UsageError(error.message, hint=error.hint) from None


def typed_model(spec: str) -> tuple[str, dict[str, float] | None]:
    """`tutor+pirate=0.7` as typed. Raises `UsageError`."""
    try:
        return split_model(spec)
    except BadRequest as error:
        raise UsageError(error.message, hint=error.hint) from None


def spelled(scales: Mapping[str, float]) -> str:
    """pirate=1 json=0.5, as `lora set` takes it."""
    return " ".join(f"{name}={scale:g}" for name, scale in scales.items())
