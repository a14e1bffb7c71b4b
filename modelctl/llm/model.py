"""What offline use is given to load: a model of the store or a bare GGUF file, with adapters added to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from modelctl import adapters as loras
from modelctl import gguf_check
from modelctl.errors import BadRequest
from modelctl.gguf_check import Header
from modelctl.mix import split_model
from modelctl.model import AdapterRef, Details, Model
from modelctl.parser.names import reason_against
from modelctl.sources import looks_like_path
from modelctl.store import Store


def find(spec: str, store: Store) -> tuple[Model, dict[str, float] | None]:
    """A GGUF file's path, or a model's name, which may spell a mix: `tutor+math=0.7`. The mix is by adapter name or
    index, None where there is none. Raises `NotFound`, `BadRequest`."""
    if looks_like_path(spec, Path.cwd()):
        return _of_file(_expanded(spec)), None
    name, mix = split_model(spec)
    return Model.load(store, name), mix


def with_adapters(model: Model, files: Mapping[str, str | Path], folder: Path) -> Model:
    """The model with LoRA adapters added by name, at scale 0. PEFT folders are converted into `folder`, which has to
    last until the adapters are loaded. Raises `BadRequest`."""
    if not files:
        return model
    header = gguf_check.read_header(model.base_path)
    taken = {ref.name for ref in model.adapters}
    added = []
    for index, (name, path) in enumerate(files.items(), len(taken)):
        if name in taken:
            raise BadRequest(f"model {model.name!r} has an adapter {name!r} already", hint="give yours another name")
        added.append(_adapter(index, name, _expanded(str(path)), header, folder))
    return replace(model, adapters=(*model.adapters, *added))


def _adapter(index: int, name: str, path: Path, base: Header, folder: Path) -> AdapterRef:
    if reason := reason_against(name):
        raise BadRequest(f"the adapter name {name!r} {reason}", hint='for example adapters={"math": "math.gguf"}')
    workdir = folder / str(index)
    workdir.mkdir()
    file, _, _ = loras.prepare(path, base, workdir)
    return AdapterRef(index, name, digest=name, path=file, scale=0.0, size=file.stat().st_size)


def _of_file(path: Path) -> Model:
    gguf_check.check_base(gguf_check.read_header(path))
    return Model(
        name=path.name,
        digest="",
        base_digest="",
        base_path=path,
        base_size=path.stat().st_size,
        adapters=(),
        template=None,
        system=None,
        messages=(),
        parameters={},
        licenses=(),
        details=Details(),
        modified=path.stat().st_mtime,
        size=path.stat().st_size,
    )


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise BadRequest(f"{path}: there is no such home folder", hint="write the whole path") from None
