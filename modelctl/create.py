"""Modelfile + store -> manifest. Everything is checked before the first large copy, and the name is written last:
an error on the way leaves no model, only blobs that gc takes away."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from modelctl import adapters, gguf_check, template
from modelctl.errors import ModelctlError
from modelctl.model import Model
from modelctl.parser import Adapter, From, Modelfile, Node, Template, warnings
from modelctl.sources import locate, looks_like_path
from modelctl.store import Layer, Manifest, NotFound, Ref, Store, StoreError, media

_SAYABLE = (media.ADAPTER, media.TEMPLATE, media.SYSTEM, media.PARAMS, media.MESSAGES, media.LICENSE)


class Report(Protocol):
    """Who is told how it goes. `total` is 0 while it is unknown."""

    def status(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, label: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class _Base:
    """What FROM came to: a file that is still to be stored, or a model of the store to inherit from."""

    header: gguf_check.Header
    path: Path | None = None
    parent: Ref | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the parent's

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.parent.manifest.layers if self.parent else ()

    def inherited(self, media_type: str) -> list[Layer]:
        return [layer for layer in self.layers if layer.media_type == media_type]


@dataclass(frozen=True)
class _Adapter:
    node: Adapter
    file: Path  # the GGUF: the one that was named, or what a PEFT folder was converted to
    source: str
    info: gguf_check.AdapterInfo


def create(store: Store, name: str, modelfile: Modelfile, folder: Path, report: Report) -> Ref:
    """The store's `name` is the model that `modelfile` describes; relative paths start in `folder`.

    Raises `ModelfileError` at the line that is wrong, `StoreError` when the store cannot take it.
    """
    with store.writing() as session:
        workdir = session.path()
        workdir.mkdir()
        return _Build(store, modelfile, folder.absolute(), workdir, report).write(name)


@dataclass(frozen=True)
class _Build:
    store: Store
    modelfile: Modelfile
    folder: Path
    workdir: Path
    report: Report

    def write(self, name: str) -> Ref:
        for problem in warnings(self.modelfile):
            self.report.warn(f"{problem.filename}:{problem.line}: {problem.message}")
        base = self._find_base()
        self._check_names(base)
        self._check_template()
        added = [self._prepare(at, node, base) for at, node in enumerate(self.modelfile.adapters)]
        layers = [*self._base_layers(base), *self._adapter_layers(base, added), *self._small_layers(base)]
        config = self._put_json(media.CONFIG, self._config(base))
        self.report.status("writing manifest")
        return self.store.write(name, Manifest(config, tuple(layers)))

    # checks, which read headers and small files only (an adapter's weights are small too)

    def _find_base(self) -> _Base:
        node, *others = self.modelfile.sources
        if others:
            raise self.modelfile.error(others[0], "a second FROM", "a model has one base; ADAPTER lines add to it")
        if not looks_like_path(node.value, self.folder):
            return self._base_model(node)
        path = locate(self.modelfile, node, node.value, self.folder)
        self.report.status(f"checking {path.name}")
        with self._blaming(node):
            header = gguf_check.read_header(path)
            gguf_check.check_base(header)
        return _Base(header, path=path)

    def _base_model(self, node: From) -> _Base:
        try:
            parent = self.store.resolve(node.value)
        except NotFound:
            names = [ref.name.short.removesuffix(":latest") for ref in self.store.list()]
            near = difflib.get_close_matches(node.value, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "for a file write its path, as in FROM ./base.gguf"
            if "/" in node.value:
                hint = "models are not pulled yet: download the GGUF file, and write its path after FROM"
            raise self.modelfile.error(node, f"no model and no file is named {node.value}", hint) from None
        except StoreError as error:
            raise self.modelfile.error(node, error.message, error.hint) from None
        with self._blaming(node):
            model = Model.of(self.store, parent)
            return _Base(gguf_check.read_header(model.base_path), parent=parent, parameters=model.parameters)

    def _check_names(self, base: _Base) -> None:
        taken = {layer.annotations.get(media.ADAPTER_NAME) for layer in base.inherited(media.ADAPTER)}
        for node in self.modelfile.adapters:
            name = node.effective_name
            if name in taken:
                hint = f"give it another name: ADAPTER {node.path} AS {name}2"
                raise self.modelfile.error(node, f"adapter {name!r} comes with the FROM model already", hint)

    def _check_template(self) -> None:
        nodes = self.modelfile.all(Template)
        if nodes and nodes[-1].text:
            with self._blaming(nodes[-1]):
                template.load(nodes[-1].text, gguf_template=None)

    def _prepare(self, at: int, node: Adapter, base: _Base) -> _Adapter:
        path = locate(self.modelfile, node, node.path, self.folder, folder_ok=True)
        label = f"adapter {node.effective_name}"
        self.report.status(f"checking {label}")
        workdir = self.workdir / str(at)
        workdir.mkdir()
        with self._blaming(node):
            file, info, _ = adapters.prepare(path, base.header, workdir, self._progress(f"converting {label}"))
        return _Adapter(node, file, path.name, info)

    @contextmanager
    def _blaming(self, node: Node) -> Iterator[None]:
        """Gives an error of the block its line."""
        try:
            yield
        except (ModelctlError, StoreError) as error:
            raise self.modelfile.error(node, error.message, error.hint) from None

    # layers

    def _base_layers(self, base: _Base) -> list[Layer]:
        """With a parent: its base, and whatever else it has that a Modelfile cannot say."""
        if base.path is not None:
            return [self._put(media.MODEL, base.path, f"base {base.path.name}")]
        return self._kept([layer for layer in base.layers if layer.media_type not in _SAYABLE])

    def _adapter_layers(self, base: _Base, added: list[_Adapter]) -> list[Layer]:
        """Inherited adapters keep their places before the new ones."""
        layers = self._kept(base.inherited(media.ADAPTER))
        for adapter in added:
            layer = self._put(media.ADAPTER, adapter.file, f"adapter {adapter.node.effective_name}")
            layers.append(replace(layer, annotations=_annotations(adapter)))
        return [
            replace(layer, annotations={**layer.annotations, media.ADAPTER_INDEX: str(at)})
            for at, layer in enumerate(layers)
        ]

    def _small_layers(self, base: _Base) -> list[Layer]:
        file = self.modelfile
        return [
            *self._text(media.TEMPLATE, file.template, base),
            *self._text(media.SYSTEM, file.system, base),
            *self._parameters(base),
            *self._messages(base),
            *self._licenses(base),
        ]

    def _text(self, media_type: str, text: str | None, base: _Base) -> list[Layer]:
        """An empty text takes the inherited one away."""
        if text is None:
            return self._kept(base.inherited(media_type))
        return [self._put(media_type, text.encode())] if text else []

    def _parameters(self, base: _Base) -> list[Layer]:
        merged = {**base.parameters, **self.modelfile.parameters}
        return [self._put_json(media.PARAMS, merged)] if merged else []

    def _messages(self, base: _Base) -> list[Layer]:
        messages = [{"role": node.role, "content": node.content} for node in self.modelfile.messages]
        return [self._put_json(media.MESSAGES, messages)] if messages else self._kept(base.inherited(media.MESSAGES))

    def _licenses(self, base: _Base) -> list[Layer]:
        layers = self._kept(base.inherited(media.LICENSE))
        added = [self._put(media.LICENSE, text.encode()) for text in self.modelfile.licenses]
        return layers + [layer for layer in added if layer not in layers]

    def _config(self, base: _Base) -> dict[str, Any]:
        parent = json.loads(self.store.read(base.parent.manifest.config.digest)) if base.parent else {}
        return parent | _describe(base.header) | self._ineffective()

    def _ineffective(self) -> dict[str, str]:
        """Instructions that are kept, so that nothing is lost, but change nothing here."""
        file = self.modelfile
        said = {
            "renderer": file.renderer,
            "parser": file.parser,
            "requires": file.requires,
            "draft": ", ".join(node.path for node in file.drafts),
            "capabilities": ", ".join(file.capabilities),
        }
        return {key: value for key, value in said.items() if value}

    # the store

    def _put(self, media_type: str, source: Path | bytes, label: str = "") -> Layer:
        """`label` for what is large enough to show progress."""
        # a converted adapter is ours, so its blob may share the file; the user's own files are copied
        link = isinstance(source, Path) and source.is_relative_to(self.workdir)
        put = self.store.put(source, progress=self._progress(f"storing {label}") if label else None, link=link)
        self.report.status(f"{'using existing' if put.existed else 'creating new'} layer {put.digest}")
        return Layer(media_type, put.digest, put.size)

    def _put_json(self, media_type: str, value: object) -> Layer:
        return self._put(media_type, json.dumps(value, sort_keys=True).encode())

    def _kept(self, layers: list[Layer]) -> list[Layer]:
        for layer in layers:
            self.report.status(f"using existing layer {layer.digest}")
        return layers

    def _progress(self, label: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report.progress(label, done, total)


def _annotations(adapter: _Adapter) -> dict[str, str]:
    info = adapter.info
    said = {
        media.ADAPTER_NAME: adapter.node.effective_name,
        media.ADAPTER_SCALE: repr(adapter.node.scale or 0.0),
        media.ADAPTER_SOURCE: adapter.source,
        media.ADAPTER_RANK: str(info.rank),
        media.ADAPTER_TARGETS: ",".join(info.target_modules),
    }
    return said if info.alpha is None else {**said, media.ADAPTER_ALPHA: repr(info.alpha)}


def _describe(header: gguf_check.Header) -> dict[str, Any]:
    """The keys of Ollama's config, for what only the base's header says."""
    info = gguf_check.base_info(header)
    return {
        "model_format": "gguf",
        "model_family": info.architecture,
        "model_families": [info.architecture],
        "model_type": _human(info.n_params),
        "file_type": info.quantization,
        "context_length": info.context_length,
        "embedding_length": info.embedding_length,
    }


def _human(n: int) -> str:
    """134515008 -> "134.52M"."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= size:
            return f"{n / size:.2f}{unit}"
    return str(n)
