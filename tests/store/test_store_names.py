"""Digests and names: Ollama's grammar, and nothing that could leave the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelctl.store import Digest, InvalidDigest, InvalidName, ModelName, Store, StoreError
from tests.store.traversal import BAD_DIGESTS, BAD_NAMES, HEX


@pytest.mark.parametrize("text", BAD_DIGESTS)
def test_bad_digests_are_refused(text: str) -> None:
    with pytest.raises(InvalidDigest, match=r"expected a digest") as caught:
        Digest.parse(text)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("made", ["", HEX[:-1], HEX.upper(), f"{HEX}\n", "../" * 21 + "x", None, 5])
def test_no_digest_with_other_contents_can_exist(made: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest(made)


def test_a_digest_has_one_spelling_and_two_separators() -> None:
    digest = Digest.parse(f"sha256:{HEX}")
    assert digest == Digest.parse(f"sha256-{HEX}")
    assert str(digest) == f"sha256:{HEX}"
    assert digest.short == HEX[:12]
    assert Digest.of(b"").hex == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("text", BAD_NAMES)
def test_bad_names_are_refused_without_touching_anything(text: str, store: Store, canary: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for act in (store.resolve, store.remove, store.pin, lambda name: store.copy(name, "fine")):
        with pytest.raises((InvalidName, InvalidDigest)):
            act(text)
    assert [path for path in sorted(tmp_path.rglob("*")) if store.root not in (path, *path.parents)] == [
        path for path in before if store.root not in (path, *path.parents)
    ]


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("tutor", "registry.ollama.ai/library/tutor:latest", "tutor:latest"),
        ("tutor:v2", "registry.ollama.ai/library/tutor:v2", "tutor:v2"),
        ("me/tutor", "registry.ollama.ai/me/tutor:latest", "me/tutor:latest"),
        ("h/n/m:t", "h/n/m:t", "h/n/m:t"),
        ("host:8080/n/m", "host:8080/n/m:latest", "host:8080/n/m:latest"),
        ("host/library/m:t", "host/library/m:t", "host/library/m:t"),
        ("_why/_the/_lucky:_stiff", "_why/_the/_lucky:_stiff", "_why/_the/_lucky:_stiff"),
        ("https://h/n/m", "h/n/m:latest", "h/n/m:latest"),
        ("hf.co/Some/Model-GGUF:Q4_K_M", "hf.co/Some/Model-GGUF:Q4_K_M", "hf.co/Some/Model-GGUF:Q4_K_M"),
        ("m:t", "registry.ollama.ai/library/m:t", "m:t"),
        (f"tutor@sha256:{HEX}", f"registry.ollama.ai/library/tutor:latest@sha256:{HEX}", f"tutor:latest@sha256:{HEX}"),
    ],
)
def test_names_are_completed(text: str, full: str, short: str) -> None:
    name = ModelName.parse(text)
    assert (str(name), name.short) == (full, short)
    assert ModelName.parse(full) == name == ModelName.parse(short)


@given(st.text(alphabet="aZ09_-.:/@\\ \n\0é+", max_size=24))
@example("a:b/c")
@example("library/Z:a")
def test_a_valid_name_round_trips_and_stays_in_its_folder(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except StoreError:
        return
    assert ModelName.parse(str(name)) == name == ModelName.parse(name.short)
    assert all(part and "/" not in part and ".." not in part and part[0] not in ".-" for part in name.parts)
