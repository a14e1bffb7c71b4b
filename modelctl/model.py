"""A stored name resolved: where its bytes are, how to prompt it, which adapters it has and how to mix them.

The manifest's layers are Ollama's. An adapter's name, default scale and what its file says stand in the annotations of
its layer; instructions that are kept but not honoured stand in the config.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from modelctl import gguf_check, parser
from modelctl import store as stores
from modelctl.errors import BadRequest, ModelctlError, NotFound
from modelctl.gguf_check import BaseInfo
from modelctl.mix import Mix, check_scale
from modelctl.store import Layer, Ref, Store, media
from modelctl.template.conversation import Message

# Instructions that have no effect here, by the config key that keeps them.
_KEPT: Mapping[str, Callable[[str], parser.Instruction]] = {
    "renderer": parser.Renderer,
    "parser": parser.Parser,
    "requires": parser.Requires,
    "draft": parser.Draft,
    "capabilities": parser.Capability,
}


@dataclass(frozen=True)
class AdapterRef:
    """One ADAPTER line. `scale` is the default one; `rank` and `alpha` are 0 where the manifest does not say."""

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
        """Raises `NotFound` for an unknown name, `BadRequest` for an impossible one, `ModelctlError` for damage."""
        return cls.of(store, resolve(store, name))

    @classmethod
    def of(cls, store: Store, ref: Ref) -> Model:
        """The same, of a name that is resolved already."""
        try:
            return _assemble(store, ref)
        except (stores.StoreError, BadRequest) as error:
            raise _damaged(ref.name.short, error.message) from None
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            raise _damaged(ref.name.short, str(error)) from None

    def adapter(self, key: str | int) -> AdapterRef:
        """By name, or by index: an int, or digits that are no adapter's name. Raises `NotFound`, with the names."""
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
        listed = ", ".join(f"{ref.name} ({ref.index})" for ref in self.adapters)
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
                raise BadRequest(f"adapter {name!r} is given twice, by name and by index")
            changed[name] = check_scale(value, name)
        return {ref.name: changed.get(ref.name, start.get(ref.name, 0.0)) for ref in self.adapters}

    def mix(self, scales: Mapping[str, float]) -> Mix:
        """The mix that `scales` (by adapter name) come to."""
        return Mix.of((self.adapter(name).digest, scale) for name, scale in scales.items())

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A request's options over the model's own parameters, typed and in range; null means not given, parameters
        that have no effect any more are left out. Raises `BadRequest`."""
        checked = dict(self.parameters)
        for name, value in options.items():
            if value is not None and not (name in parser.PARAMETERS and parser.PARAMETERS[name].deprecated):
                checked[name] = _check(name, value)
        return checked

    def modelfile(self) -> str:
        """A Modelfile that makes this model again, adapters and scales included."""
        return parser.dump(parser.Modelfile(tuple(self._instructions())))

    def _instructions(self) -> Iterator[parser.Instruction]:
        yield parser.From(str(self.base_path))
        for ref in self.adapters:
            yield parser.Adapter(str(ref.path), ref.name, ref.scale or None)
        if self.template is not None:
            yield parser.Template(self.template)
        if self.system is not None:
            yield parser.System(self.system)
        for name, value in self.parameters.items():
            for one in value if isinstance(value, list) else [value]:
                yield parser.Parameter(name, one)
        for message in self.messages:
            yield parser.Message(message.role, message.content)
        for text in self.licenses:
            yield parser.License(text)
        for key, instruction in _KEPT.items():
            if key in self.kept:
                yield instruction(self.kept[key])

    def base_info(self) -> BaseInfo:
        """What the base's header says, its own chat template included. Reads the header."""
        return gguf_check.base_info(gguf_check.read_header(self.base_path))


def _check(name: str, value: object) -> Any:
    try:
        checked = parser.check_value(name, value)
    except parser.ParameterError as error:
        raise BadRequest(error.message, hint=error.hint) from None
    return [checked] if name == "stop" and isinstance(checked, str) else checked


def resolve(store: Store, name: str) -> Ref:
    """What a name points at. Raises our errors, with the nearest name for a mistyped one."""
    try:
        return store.resolve(name)
    except (stores.InvalidName, stores.InvalidDigest) as error:
        raise BadRequest(error.message, hint=error.hint) from None
    except stores.NotFound:
        raise NotFound(f"model {name!r} not found", hint=_other_names(store, name)) from None  # Ollama's words
    except stores.StoreError as error:
        raise ModelctlError(error.message, hint=error.hint) from None


def _other_names(store: Store, name: str) -> str:
    names = [ref.name.short.removesuffix(":latest") for ref in store.list()]  # a tag that all have makes all alike
    near = difflib.get_close_matches(name.removesuffix(":latest"), names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "`modelctl list` shows them all" if names else "there are no models yet; make one: modelctl create"


def _damaged(name: str, problem: str) -> ModelctlError:
    return ModelctlError(f"model {name!r} is damaged: {problem}", hint="run `modelctl verify`, or create it again")


def _assemble(store: Store, ref: Ref) -> Model:
    manifest = ref.manifest
    store.check_layers(manifest)  # llama.cpp would not say which model has a base that was cut short
    config = _json(store, manifest.config, dict[str, Any])
    bases = manifest.of_type(media.MODEL)
    if len(bases) != 1:
        raise ValueError(f"its manifest has {len(bases)} base layers, not one")
    text = {kind: _texts(store, manifest.of_type(kind)) for kind in (media.TEMPLATE, media.SYSTEM, media.LICENSE)}
    messages = [_json(store, layer, list[Message]) for layer in manifest.of_type(media.MESSAGES)]
    parameters = [_json(store, layer, dict[str, Any]) for layer in manifest.of_type(media.PARAMS)]
    return Model(
        name=ref.name.short,
        digest=str(ref.digest),
        base_digest=str(bases[0].digest),
        base_path=store.blob(bases[0].digest),
        base_size=bases[0].size,
        adapters=_adapters(store, manifest.of_type(media.ADAPTER)),
        template=text[media.TEMPLATE][-1] if text[media.TEMPLATE] else None,
        system=text[media.SYSTEM][-1] if text[media.SYSTEM] else None,
        messages=tuple(messages[-1]) if messages else (),
        parameters=parameters[-1] if parameters else {},
        licenses=text[media.LICENSE],
        details=_details(config),
        modified=ref.modified,
        size=manifest.size,
        kept={key: _plain(config[key]) for key in _KEPT if config.get(key)},
    )


def _json(store: Store, layer: Layer, kind: type[Any]) -> Any:
    return msgspec.json.decode(store.read(layer.digest), type=kind)


def _texts(store: Store, layers: tuple[Layer, ...]) -> tuple[str, ...]:
    return tuple(store.read(layer.digest).decode() for layer in layers)


def _adapters(store: Store, layers: tuple[Layer, ...]) -> tuple[AdapterRef, ...]:
    """In the order of their ADAPTER lines; a manifest of Ollama's has no annotations and keeps its own order."""
    order = {layer: int(layer.annotations.get(media.ADAPTER_INDEX, at)) for at, layer in enumerate(layers)}
    refs = [_adapter(store, at, layer) for at, layer in enumerate(sorted(layers, key=order.__getitem__))]
    names = [ref.name for ref in refs]
    if len(set(names)) != len(names):
        raise ValueError(f"two adapters have one name among {', '.join(names)}")
    return tuple(refs)


def _adapter(store: Store, index: int, layer: Layer) -> AdapterRef:
    said = layer.annotations
    name = said.get(media.ADAPTER_NAME, f"adapter{index}")
    targets = said.get(media.ADAPTER_TARGETS, "")
    return AdapterRef(
        index=index,
        name=name,
        digest=str(layer.digest),
        path=store.blob(layer.digest),
        scale=check_scale(float(said.get(media.ADAPTER_SCALE, 0.0)), name),
        size=layer.size,
        rank=int(said.get(media.ADAPTER_RANK, 0)),
        alpha=float(said.get(media.ADAPTER_ALPHA, 0.0)),
        target_modules=tuple(filter(None, targets.split(","))),
        source=said.get(media.ADAPTER_SOURCE, ""),
    )


def _details(config: Mapping[str, Any]) -> Details:
    return Details(
        family=str(config.get("model_family", "")),
        format=str(config.get("model_format", "gguf")),
        parameter_size=str(config.get("model_type", "")),
        quantization_level=str(config.get("file_type", "")),
    )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
