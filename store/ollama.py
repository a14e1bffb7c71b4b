"""The way home from Ollama: its models, adapter layers included, out of its store and into ours.

Ollama keeps `manifests/<host>/<namespace>/<model>/<tag>` (Docker manifests; 0.34.1 and later: `manifests-v2`) beside
`blobs/sha256-<hex>`. That store is only read. Every layer is checked against its digest on the way in, and the same
model imports to the same digest every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import media
from .archive import check_free
from .errors import BadSource, Corrupt, InvalidName, NotFound, StoreError
from .ingest import Progress
from .manifest import MAX_BYTES, Layer, Manifest, parse_json
from .names import ModelName
from .store import Ref, Store

Describe = Callable[[Path, Path], Mapping[str, str]]

_TREES = ("manifests-v2", "manifests")
PLACES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models")


@dataclass(frozen=True)
class Imported:
    """One model of the other store: what it became here, or why it could not."""

    name: ModelName
    ref: Ref | None = None
    n_new_bytes: int = 0
    error: StoreError | None = None


def default_folder() -> Path:
    """Where Ollama keeps its models on this machine: `OLLAMA_MODELS`, else the usual places. Raises `NotFound`."""
    chosen = os.environ.get("OLLAMA_MODELS")
    places = [Path(chosen)] if chosen else [Path(place).expanduser() for place in PLACES]
    for place in places:
        if _trees(place):
            return place
    raise NotFound(f"no Ollama store at {' or '.join(map(str, places))}", hint="name its folder: --from-ollama DIR")


def models(folder: Path) -> dict[ModelName, Path]:
    """Every model there and its manifest's path. Raises `NotFound` if that is no Ollama store."""
    trees = _trees(folder)
    if not trees:
        raise NotFound(f"{folder} is no Ollama store", hint="expected a folder with manifests/ and blobs/ in it")
    found: dict[ModelName, Path] = {}
    for tree in trees:
        for path in sorted(tree.glob("*/*/*/*")):
            name = _name(path.relative_to(tree).parts)
            if name is not None and path.is_file():
                found.setdefault(name, path)
    return found


def import_models(
    store: Store,
    folder: Path,
    names: Sequence[str] = (),
    *,
    replace: bool = False,
    describe: Describe | None = None,
    progress: Progress | None = None,
) -> Iterator[Imported]:
    """Imports the models named, or all; one that fails does not stop the others.

    Files are shared by reflink or hard link where the file system can, else copied. `describe` gives further
    annotations (rank, alpha, target modules) for the files of an adapter and of its base. Raises `NotFound` for a name
    that is not there.
    """
    there = models(folder)
    for name in [_find(name, there, folder) for name in names] or sorted(there):
        try:
            yield _import(store, folder, name, there[name], replace, describe, progress)
        except StoreError as error:
            yield Imported(name, error=error)


def _import(
    store: Store,
    folder: Path,
    name: ModelName,
    path: Path,
    replace: bool,
    describe: Describe | None,
    progress: Progress | None,
) -> Imported:
    source = _read(path)
    with store.writing():
        new_bytes = 0
        for layer in source:
            blob = _blob(folder, layer)
            put = store.put(blob, expected=layer.digest, progress=progress, link=True)
            new_bytes += 0 if put.existed else put.size
        manifest = _translate(source, name, store, describe)
        check_free(store, name, manifest.digest, replace)
        return Imported(name, store.write(name, manifest), new_bytes)


def _read(path: Path) -> Manifest:
    """Ollama's manifest; its digests may be in upper case."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadSource(f"cannot read {path}: {error.strerror}") from error
    try:
        value = parse_json(data, "manifest")
        for layer in [value.get("config"), *_listed(value.get("layers"))]:
            if isinstance(layer, dict) and isinstance(layer.get("digest"), str):
                layer["digest"] = layer["digest"].lower()
        return Manifest.from_json(value)
    except Corrupt as error:
        raise Corrupt(f"Ollama's {path} is damaged: {error.message}", hint="pull or create it there again") from None


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _blob(folder: Path, layer: Layer) -> Path:
    """The layer's file. Raises `NotFound`, or `Corrupt` when its size is wrong already."""
    for spelling in (layer.digest.filename, str(layer.digest)):  # very old stores have a colon
        path = folder / "blobs" / spelling
        try:
            size = path.stat().st_size
        except OSError:
            continue
        if size != layer.size:
            raise Corrupt(f"Ollama's {path} has {size} bytes, its manifest says {layer.size}")
        return path
    raise NotFound(
        f"Ollama's blob {layer.digest} is missing in {folder / 'blobs'}", hint="pull or create it there again"
    )


def _translate(source: Manifest, name: ModelName, store: Store, describe: Describe | None) -> Manifest:
    """The same layers; each adapter says its name, its place, and the scale at which Ollama ran it."""
    layers: list[Layer] = []
    bases = source.of_type(media.MODEL)
    n_adapters = 0
    for layer in source.layers:
        if layer.media_type == media.ADAPTER:
            facts = describe(store.blob(layer.digest), store.blob(bases[0].digest)) if describe and bases else {}
            layer = replace(layer, annotations={**facts, **_adapter(n_adapters, name)})
            n_adapters += 1
        layers.append(layer)
    return Manifest(source.config, tuple(layers))


def _adapter(index: int, name: ModelName) -> dict[str, str]:
    return {
        media.ADAPTER_NAME: f"adapter{index}",
        media.ADAPTER_INDEX: str(index),
        media.ADAPTER_SCALE: "1.0",
        media.ADAPTER_SOURCE: f"ollama:{name.short}",
    }


def _trees(folder: Path) -> list[Path]:
    return [tree for name in _TREES if (tree := folder / name).is_dir()]


def _name(parts: tuple[str, ...]) -> ModelName | None:
    host, namespace, model, tag = parts
    try:
        return ModelName.parse(f"{host}/{namespace}/{model}:{tag}")
    except InvalidName:
        return None


def _find(text: str, there: Mapping[ModelName, Path], folder: Path) -> ModelName:
    wanted = ModelName.parse(text)
    for name in there:
        if name.key == wanted.key:
            return name
    known = ", ".join(sorted(name.short for name in there)) or "none"
    raise NotFound(f"no model {wanted.short!r} in {folder}", hint=f"there are: {known}")


__all__ = ["Imported", "default_folder", "import_models", "models"]
