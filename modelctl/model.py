"""A stored name resolved: where its bytes are, how to prompt it, which adapters it has and how a mix of them is spelled.

The manifest's layers are Ollama's. An adapter's name, default scale and what its file says stand in the annotations of
its layer, keyed by the constants below; instructions that are kept but not honoured stand in the config.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelctl.errors import BadRequest, NotFound
from modelctl.mix import Mix, check_scale
from modelctl.store import Layer, Manifest, ModelName, Store, media
from modelctl.template.conversation import Message

NAME = "modelctl.adapter.name"
SCALE = "modelctl.adapter.scale"
RANK = "modelctl.adapter.rank"
ALPHA = "modelctl.adapter.alpha"
TARGETS = "modelctl.adapter.target-modules"
SOURCE = "modelctl.source"  # the file name it was made from


@dataclass(frozen=True)
class AdapterRef:
    """One ADAPTER line. `scale` is the default one; `rank` and `alpha` are 0 when the file was not made by `create`."""

    index: int
    name: str
    digest: str
    path: Path
    scale: float
    size: int
    rank: int = 0
    alpha: float = 0.0
    target_modules: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Details:
    family: str = ""
    format: str = "gguf"
    parameter_size: str = ""
    quantization_level: str = ""


@dataclass(frozen=True)
class Model:
    """Everything that a prompt needs to know. `name` is the short form, with its tag: `tutor:latest`."""

    name: str
    digest: str  # of the manifest
    base_digest: str
    base_path: Path
    base_size: int
    adapters: tuple[AdapterRef, ...]
    template: str | None
    system: str | None
    messages: tuple[Message, ...]
    parameters: dict[str, Any]
    licenses: tuple[str, ...]
    details: Details
    modified: float  # seconds since the epoch
    size: int  # bytes of all layers
    kept: dict[str, str] = field(default_factory=dict)  # instructions kept but not honoured

    @classmethod
    def load(cls, store: Store, name: str) -> Model:
        """Raises `NotFound` for an unknown name, `BadRequest` for an impossible one."""
        raise NotImplementedError

    def adapter(self, key: str | int) -> AdapterRef:
        """By name, or by index (an int, or digits that are no adapter's name). Raises `NotFound` that lists the names."""
        for ref in self.adapters:
            if ref.name == key:
                return ref
        index = int(key) if isinstance(key, int) or (key.isdecimal() and len(key) < 5) else -1
        if 0 <= index < len(self.adapters):
            return self.adapters[index]
        raise NotFound(f"model {self.name!r} has no adapter {key!r}", hint=self._adapter_hint(str(key)))

    def _adapter_hint(self, key: str) -> str:
        names = [ref.name for ref in self.adapters]
        if not names:
            return "it has no adapters; an ADAPTER line in its Modelfile adds one"
        near = difflib.get_close_matches(key, names, n=1)
        listed = ", ".join(f"{ref.index} {ref.name}" for ref in self.adapters)
        return (f"did you mean {near[0]!r}? " if near else "") + f"it has: {listed}"

    def default_scales(self) -> dict[str, float]:
        return {ref.name: ref.scale for ref in self.adapters}

    def scales(self, change: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
        """`start` (by name; left out means 0) with `change` (by name or index) applied: a scale for every adapter.

        Checked whole before anything is returned. Raises `NotFound` for an unknown adapter, `BadRequest` for a scale
        that is not a finite number from -100 to 100 and for an adapter that is meant twice.
        """
        changed: dict[str, float] = {}
        for key, value in change.items():
            name = self.adapter(key).name
            if name in changed:
                raise BadRequest(f"adapter {name!r} is named twice, once by its index")
            changed[name] = check_scale(value, name)
        return {ref.name: changed.get(ref.name, start.get(ref.name, 0.0)) for ref in self.adapters}

    def mix(self, scales: Mapping[str, float]) -> Mix:
        """The mix that `scales` (by adapter name) come to."""
        return Mix.of((self.adapter(name).digest, scale) for name, scale in scales.items())

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Request options over the model's own parameters, typed and in range. Raises `BadRequest`."""
        raise NotImplementedError

    def modelfile(self) -> str:
        """A Modelfile that makes this model again, adapters and scales included."""
        raise NotImplementedError
