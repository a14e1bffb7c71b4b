"""Mixes: every model's current scales. They live here and nowhere else: a runner learns a mix with each request.

So `lora set` costs no decode, loads nothing, works for a model that is not in memory, and outlives its runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelctl.api.native import Lora
from modelctl.errors import BadRequest
from modelctl.model import Model

Identity = tuple[tuple[str, str, float], ...]


class Mixes:
    """Current scales by model name. A name created anew with other adapters or defaults starts from its defaults."""

    def __init__(self) -> None:
        self._current: dict[str, tuple[Identity, dict[str, float]]] = {}

    def current(self, model: Model) -> dict[str, float]:
        """A scale for every adapter, by name."""
        identity, scales = self._current.get(model.name, ((), {}))
        return dict(scales) if identity == _identity(model) else model.default_scales()

    def change(self, model: Model, lora: Lora, *, start: Mapping[str, float] | None = None) -> dict[str, float]:
        """Listed adapters change, the others keep theirs, or what they have in `start`. All or nothing."""
        scales = model.scales(named(lora), self.current(model) if start is None else start)
        self._current[model.name] = _identity(model), scales
        return dict(scales)

    def forget(self, name: str) -> None:
        self._current.pop(name, None)


def chosen(
    model: Model, current: Mapping[str, float], spelled: Mapping[str, float] | None, lora: Lora | None
) -> dict[str, float]:
    """The scales of one request: its `lora` field, else the mix in its model's name, else the model's current ones."""
    if lora is not None:
        return model.scales(named(lora), start={})
    return dict(current) if spelled is None else model.scales(spelled, start={})


def named(lora: Lora) -> dict[str, Any]:
    """Either wire form as adapter name or index -> scale. Raises `BadRequest`."""
    if isinstance(lora, dict):
        return lora
    scales: dict[str, Any] = {}
    for at, entry in enumerate(lora):
        if (entry.id is None) == (entry.name is None):
            raise BadRequest(
                f"entry {at} of the adapters needs either an id or a name", hint='for example {"id": 0, "scale": 1.0}'
            )
        key = str(entry.id) if entry.name is None else entry.name
        if key in scales:
            raise BadRequest(f"adapter {key!r} is given twice")
        scales[key] = entry.scale
    return scales


def _identity(model: Model) -> Identity:
    return tuple((adapter.name, adapter.digest, adapter.scale) for adapter in model.adapters)
