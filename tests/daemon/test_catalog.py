"""What a name means is read once, and again when it may mean something else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from modelctl import parser
from modelctl.create import create
from modelctl.daemon import catalog
from modelctl.daemon.catalog import Catalog
from modelctl.errors import ModelctlError, NotFound
from modelctl.model import Model
from modelctl.store import Ref, Store
from tests.daemon.conftest import Quiet
from tests.gguf_check.gguf_files import tiny_base


@pytest.fixture
def store(tmp_path: Path) -> Store:
    tiny_base().write(tmp_path / "base.gguf")
    return Store(tmp_path / "store")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were read from the store."""
    seen: list[str] = []
    original = Model.load

    def load(store: Store, name: str) -> Model:
        seen.append(name)
        return original(store, name)

    monkeypatch.setattr(Model, "load", load)
    return seen


def make(store: Store, system: str, name: str = "tutor") -> Ref:
    return create(store, name, parser.parse(f"FROM base.gguf\nSYSTEM {system}\n"), store.root.parent, Quiet())


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_a_crowd_reads_a_name_once(store: Store, loads: list[str]) -> None:
    make(store, "one")

    async def test() -> None:
        known = Catalog(store)
        models = await asyncio.gather(*(known.model("tutor") for _ in range(20)))
        assert {model.system for model in models} == {"one"}

    run(test())
    assert loads == ["tutor"]


def test_a_name_made_anew_is_seen_at_once(store: Store, loads: list[str]) -> None:
    async def test() -> None:
        known = Catalog(store)
        for system in ("one", "two", "three"):
            make(store, system)
            assert [(await known.model(name)).system for name in ("tutor", "Tutor:LATEST")] == [system, system]

    run(test())
    assert len(loads) == 6


def test_a_name_that_is_gone_is_not_found(store: Store) -> None:
    make(store, "one")

    async def test() -> None:
        known = Catalog(store)
        await known.model("tutor")
        store.remove("tutor")
        with pytest.raises(NotFound, match="not found"):
            await known.model("tutor")
        make(store, "two", "TUTOR")
        assert (await known.model("tutor")).system == "two"

    run(test())


def test_a_base_cut_short_is_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "one")
    monkeypatch.setattr(catalog, "FRESH", 0.0)

    async def test() -> None:
        known = Catalog(store)
        path = (await known.model("tutor")).base_path
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ModelctlError, match="damaged"):
            await known.model("tutor")

    run(test())


def test_a_model_whose_files_are_as_they_were_is_not_read_again(
    store: Store, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "one")
    monkeypatch.setattr(catalog, "FRESH", 0.0)

    async def test() -> None:
        known = Catalog(store)
        for _ in range(3):
            await known.model("tutor")

    run(test())
    assert loads == ["tutor"]


def test_a_pinned_name_and_many_spellings(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(store, "one")
    store.pin("tutor")
    make(store, "two")
    monkeypatch.setattr(catalog, "MAX_KNOWN", 2)

    async def test() -> None:
        known = Catalog(store)
        for _ in range(2):
            assert (await known.model(f"tutor@{first.digest}")).system == "one"
            assert {(await known.model(name)).system for name in ("tutor", "TUTOR", "tuTor")} == {"two"}
        assert len(known._known) <= 2

    run(test())
