"""gc, verify, du, pin, export and import as they are typed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelctl import config
from modelctl.cli import invoke
from modelctl.model import Model
from modelctl.store import Layer, Manifest, Store, media

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(home: Path) -> Store:
    return Store(config.load().store_root)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str) -> tuple[int, str, str]:
        code = invoke(args)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_gc(run: Run, store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    garbage = store.put(bytes(5000))
    code, out, err = run("gc")
    assert (code, out) == (0, "freed 0 B in 0 blobs\n")
    assert "1 blob younger than 1h stay" in err
    assert run("gc", "--grace", "0", "--dry-run")[:2] == (0, "would free 5.0 KB in 1 blob\n")
    assert store.has(garbage.digest)
    assert run("gc", "--grace", "0s")[:2] == (0, "freed 5.0 KB in 1 blob\n")
    assert not store.has(garbage.digest)
    for wrong in ("soon", "-1"):
        assert run("gc", "--grace", wrong)[0] == 2


def test_gc_with_a_damaged_model(run: Run, store: Store, build) -> None:
    ref = store.write("tutor", build(b"base"))
    store.refs.locate(ref.name).write_bytes(b"")
    code, _, err = run("gc", "--grace", "0")
    assert code == 1
    assert "tutor:latest" in err
    assert "--force" in err
    assert run("gc", "--grace", "0", "--force")[0] == 0


def test_verify(run: Run, store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    code, out, _ = run("verify")
    assert (code, out) == (0, "verified 3 blobs, 400 B\nno problems\n")
    blob = store.blob(store.put(b"base").digest)
    blob.chmod(0o644)
    blob.write_bytes(b"BASE")
    code, _, err = run("verify")
    assert code == 1
    assert str(blob) in err
    assert "needed by tutor: create or import" in err
    assert "verify --repair" in err
    code, _, err = run("verify", "--repair")
    assert code == 1
    assert f"moved to {store.quarantine}" in err
    store.put(b"base")
    assert run("verify", "--restart")[0] == 0


def test_du(run: Run, store: Store, build) -> None:
    assert run("du")[0] == 0
    store.write("one", build(bytes(50_000), b"own"))
    store.write("two", build(bytes(50_000)))
    store.put(bytes(7000))
    code, out, _ = run("du")
    assert code == 0
    assert "7.0 KB of it in 1 blob that no model needs" in out
    found = json.loads(run("du", "--json")[1])
    assert {model["name"] for model in found["models"]} == {"one:latest", "two:latest"}
    assert all(model["shared"] == 50_002 for model in found["models"])
    assert found["garbage"] == {"size": 7000, "blobs": 1}


def test_pin(run: Run, store: Store, build) -> None:
    ref = store.write("tutor", build(b"1"))
    pinned = f"tutor:latest@{ref.digest}"
    assert run("pin", "tutor")[:2] == (0, f"{pinned}\n")
    store.write("tutor", build(b"2"))
    assert run("pin")[:2] == (0, f"{pinned}\n")
    assert run("cp", pinned, "first")[0] == 0
    assert store.resolve("first").digest == ref.digest
    assert run("pin", "--remove", "tutor")[0] == 2
    assert run("pin", "--remove", pinned)[0] == 0
    assert run("pin", "--remove", pinned)[0] == 1
    assert run("pin")[:2] == (0, "")


def test_export_and_import(run: Run, store: Store, build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = store.write("tutor", build(os.urandom(100_000)))
    file = tmp_path / "out" / "tutor.tar"
    file.parent.mkdir()
    assert run("export", "tutor", str(file))[0] == 0
    code, _, err = run("export", "tutor", str(file))
    assert code == 1
    assert "exists already" in err
    assert run("export", "tutor", str(file), "--force")[0] == 0
    assert [path.name for path in file.parent.iterdir()] == ["tutor.tar"]
    monkeypatch.setenv("MODELCTL_HOME", str(tmp_path / "second-home"))
    second = Store(config.load().store_root)
    assert run("import", str(file))[:2] == (0, f"imported tutor  {ref.digest.short}\n")
    assert run("import", str(file), "--as", "me/copy")[0] == 0
    assert {found.digest for found in second.list()} == {ref.digest}
    second.write("tutor", Manifest(ref.manifest.config))
    code, _, err = run("import", str(file))
    assert code == 1
    assert "another model" in err
    assert "--as" in err
    assert run("import", str(file), "--force")[0] == 0
    assert second.resolve("tutor").digest == ref.digest


def test_export_and_import_through_a_pipe(
    store: Store, build, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    ref = store.write("tutor", build(b"base"))
    assert invoke(["export", "tutor", "-"]) == 0
    data = capfdbinary.readouterr().out
    store.remove("tutor")
    with (store.root.parent / "piped").open("w+b") as file:
        file.write(data)
        file.seek(0)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert invoke(["import", "-"]) == 0
    assert store.resolve("tutor").digest == ref.digest


def test_a_failed_export_leaves_no_file(run: Run, store: Store, build, tmp_path: Path) -> None:
    store.write("tutor", build(b"base"))
    blob = store.blob(store.put(b"base").digest)
    blob.chmod(0o644)
    blob.write_bytes(b"BASE")
    (folder := tmp_path / "out").mkdir()
    assert run("export", "tutor", str(folder / "tutor.tar"))[0] == 1
    assert run("export", "nobody", str(folder / "tutor.tar"))[0] == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("args", [(), ("a.tar", "b.tar"), ("--from-ollama", "--as", "x")])
def test_wrong_command_lines(run: Run, args: tuple[str, ...]) -> None:
    assert run("import", *args)[0] == 2


def test_what_is_no_archive(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.tar"):
        assert run("import", str(path))[0] == 1
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(2000))
    code, _, err = run("import", str(tmp_path / "model.gguf"))
    assert code == 1
    assert "no tar archive" in err


def test_a_stranded_adapter_model_comes_home(
    run: Run, store: Store, base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """A real base and two real adapters in Ollama's layout end as a model that modelctl can load."""
    folder = tmp_path / "ollama-models"
    (folder / "blobs").mkdir(parents=True)

    def layer(media_type: str, file: Path) -> dict[str, object]:
        with file.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        shutil.copyfile(file, folder / "blobs" / f"sha256-{digest}")
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": file.stat().st_size}

    (tmp_path / "config").write_text('{"model_format": "gguf", "model_family": "llama"}')
    manifest = {
        "schemaVersion": 2,
        "mediaType": media.DOCKER_MANIFEST,
        "config": layer(media.CONFIG, tmp_path / "config"),
        "layers": [layer(media.MODEL, base), *(layer(media.ADAPTER, adapters[name]) for name in ("pirate", "json"))],
    }
    tag = folder / "manifests" / "registry.ollama.ai" / "library" / "tutor" / "latest"
    tag.parent.mkdir(parents=True)
    tag.write_text(json.dumps(manifest))
    code, out, err = run("import", "--from-ollama", str(folder), "tutor")
    assert code == 0, err
    assert out.startswith("imported tutor  ")
    assert "2 adapters at scale 1" in out
    model = Model.of(store, store.resolve("tutor"))
    assert [(adapter.name, adapter.scale) for adapter in model.adapters] == [("adapter0", 1.0), ("adapter1", 1.0)]
    assert all(adapter.rank > 0 and adapter.target_modules for adapter in model.adapters)
    assert model.base_path.read_bytes() == base.read_bytes()
    code, _, err = run("import", "--from-ollama", str(folder), "nobody")
    assert code == 1
    assert "there are: tutor:latest" in err


def test_one_bad_model_of_ollamas_fails_the_command_and_not_the_others(run: Run, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "ollama-models"
    (folder / "blobs").mkdir(parents=True)
    good = Store(tmp_path / "scratch")
    config_layer = Layer(media.CONFIG, good.put(b"{}").digest, 2)
    (folder / "blobs" / config_layer.digest.filename).write_bytes(b"{}")
    tags = folder / "manifests" / "registry.ollama.ai" / "library"
    for name, text in (("good", Manifest(config_layer).to_bytes()), ("torn", b"")):
        (tags / name).mkdir(parents=True)
        (tags / name / "latest").write_bytes(text)
    code, out, err = run("import", "--from-ollama", str(folder))
    assert code == 1
    assert "imported good" in out
    assert "torn: Ollama's" in err
    assert [ref.name.model for ref in store.list()] == ["good"]
