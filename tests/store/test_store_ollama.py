"""The way home from Ollama, on a store laid out as Ollama lays it out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from modelctl.store import Corrupt, Exists, Mismatch, NotFound, Store, media, ollama

TUTOR = "registry.ollama.ai/library/tutor/latest"


class OllamaStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)

    def layer(self, media_type: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / "blobs" / f"sha256-{digest}"
        path.write_bytes(data)
        path.chmod(0o644)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def write(self, name: str, *layers: dict[str, Any], tree: str = "manifests") -> Path:
        path = self.folder / tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {"model_format": "gguf", "model_family": "llama", "file_type": "Q4_1", "architecture": "amd64"}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self.layer("application/vnd.docker.container.image.v1+json", json.dumps(config).encode()),
            "layers": list(layers),
        }
        path.write_text(json.dumps(manifest))
        return path

    def snapshot(self) -> dict[str, Any]:
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {str(path): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def theirs(tmp_path: Path) -> OllamaStore:
    found = OllamaStore(tmp_path / "ollama")
    base = {**found.layer("application/vnd.ollama.image.model", b"GGUF base"), "from": "/root/base.gguf"}
    found.write(
        TUTOR,
        base,
        found.layer("application/vnd.ollama.image.adapter", b"GGUF first"),
        found.layer("application/vnd.ollama.image.adapter", b"GGUF second"),
        found.layer("application/vnd.ollama.image.template", b"{{ .Prompt }}"),
        found.layer("application/vnd.ollama.image.params", b'{"stop":["<|im_end|>"]}'),
    )
    found.write("registry.ollama.ai/library/SmolLM/135m", base)
    found.write("hf.co/Someone/Model-GGUF/Q4_K_M", base)
    return found


def _import(store: Store, theirs: OllamaStore, *names: str, **options: Any) -> list[ollama.Imported]:
    return list(ollama.import_models(store, theirs.folder, names, **options))


def test_all_models_come_over_and_theirs_stay_as_they_are(store: Store, theirs: OllamaStore) -> None:
    before = theirs.snapshot()
    found = _import(store, theirs)
    assert [one.name.short for one in found] == ["hf.co/Someone/Model-GGUF:Q4_K_M", "SmolLM:135m", "tutor:latest"]
    assert [one.error for one in found] == [None] * 3
    assert {ref.name for ref in store.list()} == {one.name for one in found}
    assert theirs.snapshot() == before
    assert found[1].n_new_bytes == 0, "the base is shared"


def test_adapters_say_the_scale_they_ran_at(store: Store, theirs: OllamaStore) -> None:
    facts = {media.ADAPTER_RANK: "8", media.ADAPTER_SCALE: "9"}

    def describe(adapter: Path, base: Path) -> dict[str, str]:
        assert (adapter.read_bytes()[:4], base.read_bytes()) == (b"GGUF", b"GGUF base")
        return facts

    (found,) = _import(store, theirs, "TUTOR", describe=describe)
    assert found.ref is not None
    adapters = found.ref.manifest.of_type(media.ADAPTER)
    assert [dict(layer.annotations) for layer in adapters] == [
        {
            "modelctl.adapter.name": f"adapter{at}",
            "modelctl.adapter.index": str(at),
            "modelctl.adapter.scale": "1.0",
            "modelctl.adapter.source": "ollama:tutor:latest",
            "modelctl.adapter.rank": "8",
        }
        for at in range(2)
    ]
    assert [store.read(layer.digest) for layer in adapters] == [b"GGUF first", b"GGUF second"]
    assert store.read(found.ref.manifest.of_type(media.PARAMS)[0].digest) == b'{"stop":["<|im_end|>"]}'


def test_importing_twice_changes_nothing(store: Store, theirs: OllamaStore) -> None:
    first = _import(store, theirs, "tutor")
    blobs = set(store.blobs.folder.iterdir())
    second = _import(store, theirs, "tutor")
    assert first[0].ref and second[0].ref
    assert first[0].ref.digest == second[0].ref.digest
    assert second[0].n_new_bytes == 0
    assert set(store.blobs.folder.iterdir()) == blobs


def test_one_bad_model_does_not_stop_the_others(store: Store, theirs: OllamaStore) -> None:
    (theirs.folder / "manifests" / TUTOR).write_bytes(b"")
    cut = theirs.layer(media.MODEL, b"will be cut")
    theirs.write("registry.ollama.ai/library/cut/latest", cut)
    (theirs.folder / "blobs" / cut["digest"].replace(":", "-")).write_bytes(b"will")
    rotten = theirs.layer(media.MODEL, b"will rot")
    theirs.write("registry.ollama.ai/library/rotten/latest", rotten)
    (theirs.folder / "blobs" / rotten["digest"].replace(":", "-")).write_bytes(b"has rot!")
    gone = theirs.layer(media.MODEL, b"will be gone")
    theirs.write("registry.ollama.ai/library/gone/latest", gone)
    (theirs.folder / "blobs" / gone["digest"].replace(":", "-")).unlink()
    errors = {one.name.model: type(one.error) for one in _import(store, theirs) if one.error}
    assert errors == {"tutor": Corrupt, "cut": Corrupt, "rotten": Mismatch, "gone": NotFound}
    assert {ref.name.model for ref in store.list()} == {"SmolLM", "Model-GGUF"}


def test_a_model_of_ours_is_not_replaced(store: Store, theirs: OllamaStore, build) -> None:
    mine = store.write("tutor", build(b"mine"))
    (found,) = _import(store, theirs, "tutor")
    assert isinstance(found.error, Exists)
    assert store.resolve("tutor").digest == mine.digest
    (forced,) = _import(store, theirs, "tutor", replace=True)
    assert forced.ref is not None
    assert store.resolve("tutor").digest == forced.ref.digest


def test_old_and_new_layouts(store: Store, theirs: OllamaStore) -> None:
    upper = theirs.layer(media.MODEL, b"upper")
    path = theirs.folder / "blobs" / upper["digest"].replace(":", "-")
    path.rename(path.with_name(upper["digest"]))  # the colon of very old stores
    theirs.write("registry.ollama.ai/library/upper/latest", {**upper, "digest": upper["digest"].upper()})
    theirs.write(TUTOR, theirs.layer(media.MODEL, b"newer"), tree="manifests-v2")
    found = {one.name.model: one for one in _import(store, theirs, "upper", "tutor")}
    tutor, upper_ref = found["tutor"].ref, found["upper"].ref
    assert tutor is not None
    assert tutor.manifest.of_type(media.ADAPTER) == ()
    assert upper_ref is not None
    assert store.read(upper_ref.manifest.layers[0].digest) == b"upper"


def test_hostile_digests_lead_nowhere(store: Store, theirs: OllamaStore, canary: Path) -> None:
    layer = {"mediaType": media.MODEL, "digest": "sha256:../../canary", "size": 9}
    theirs.write("registry.ollama.ai/library/evil/latest", layer)
    (found,) = _import(store, theirs, "evil")
    assert isinstance(found.error, Corrupt)


def test_what_is_not_there_is_said(store: Store, theirs: OllamaStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model 'nobody:latest'") as caught:
        _import(store, theirs, "tutor", "nobody")
    assert "tutor:latest" in (caught.value.hint or "")
    assert store.list() == [], "all names are looked up before anything is stored"
    with pytest.raises(NotFound, match="is no Ollama store"):
        list(ollama.import_models(store, tmp_path))


def test_the_usual_places(theirs: OllamaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(theirs.folder))
    assert ollama.default_folder() == theirs.folder
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="nowhere"):
        ollama.default_folder()
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ollama").mkdir()
    theirs.folder.rename(tmp_path / ".ollama" / "models")
    assert ollama.default_folder() == tmp_path / ".ollama" / "models"
