"""How adapters and mixes are put into words; the one rule about scale 0 is worded here only."""

from __future__ import annotations

from collections.abc import Mapping


def short(model: str) -> str:
    """What people type: without `:latest`."""
    return model.removesuffix(":latest")


def rule(model: str, scales: Mapping[str, float]) -> str:
    """The one rule, while all adapters are at 0; else what is on. `scales` must not be empty."""
    on = {name: scale for name, scale in scales.items() if scale}
    if on:
        return f"adapters that are on: {spelled(on)}"
    first = next(iter(scales))
    which = f"the adapter {first} is" if len(scales) == 1 else f"all {len(scales)} adapters are"
    command = f"modelctl lora set {first}=1 -m {short(model)}"
    return f"{which} at scale 0, so this is the plain base; turn one on with: {command}"


def spelled(scales: Mapping[str, float]) -> str:
    """pirate=1 json=0.5, as `lora set` takes it."""
    return " ".join(f"{name}={scale:g}" for name, scale in scales.items())
