from __future__ import annotations

import json

import pytest

from modelctl.store import Corrupt, Digest, Layer, Manifest, media

LAYER = Layer(media.ADAPTER, Digest.of(b"x"), 1, {media.ADAPTER_NAME: "math", media.ADAPTER_SCALE: "0.5"})
CONFIG = Layer(media.CONFIG, Digest.of(b"{}"), 2)
MANIFEST = Manifest(CONFIG, (LAYER,), {"a": "b"})


def test_a_manifest_round_trips_and_its_digest_depends_on_contents_only() -> None:
    again = Manifest.from_bytes(MANIFEST.to_bytes())
    assert again == MANIFEST
    assert again.digest == Digest.of(MANIFEST.to_bytes())
    turned = Layer(media.ADAPTER, LAYER.digest, 1, dict(reversed(LAYER.annotations.items())))
    assert Manifest(CONFIG, (turned,), {"a": "b"}).digest == MANIFEST.digest
    assert Manifest(CONFIG, (LAYER, LAYER)).digest != Manifest(CONFIG, (LAYER,)).digest


def test_it_has_the_shape_of_an_oci_image_manifest() -> None:
    value = json.loads(MANIFEST.to_bytes())
    assert value["schemaVersion"] == 2
    assert value["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert value["config"] == {"mediaType": media.CONFIG, "digest": str(CONFIG.digest), "size": 2}
    assert value["layers"][0]["annotations"]["modelctl.adapter.name"] == "math"


def test_size_counts_each_blob_once() -> None:
    assert Manifest(CONFIG, (LAYER, LAYER)).size == 3


def _with(**changes: object) -> bytes:
    return json.dumps({**json.loads(MANIFEST.to_bytes()), **changes}).encode()


def _with_layer(**changes: object) -> bytes:
    return _with(layers=[{**LAYER.to_json(), **changes}])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b"\xff\xfe",
        b"{}",
        MANIFEST.to_bytes()[:-20],
        b"[" * 100_000,
        b'{"schemaVersion":' + b"9" * 5000 + b"}",
        b" " * (5 << 20),
        _with(schemaVersion=1),
        _with(mediaType=media.INDEX),
        _with(layers=None),
        _with(layers={}),
        _with(layers=[None]),
        _with(layers=["sha256:x"]),
        _with(config=None),
        _with(config={}),
        _with(annotations=[1]),
        _with(annotations={"a": 1}),
        _with_layer(size=-1),
        _with_layer(size=1 << 63),
        _with_layer(size=1.5),
        _with_layer(size=True),
        _with_layer(size="1"),
        _with_layer(mediaType=""),
        _with_layer(mediaType=None),
        _with_layer(digest=None),
        _with_layer(digest="sha256:../../../etc/passwd"),
        _with_layer(digest=str(LAYER.digest).upper()),
        _with_layer(annotations={"a": None}),
    ],
    ids=lambda data: data[:30].decode("latin-1"),
)
def test_damaged_manifests_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Manifest.from_bytes(data)


def test_unknown_fields_and_ollamas_media_type_are_read() -> None:
    assert Manifest.from_bytes(_with(mediaType=media.DOCKER_MANIFEST, subject={"x": 1})).layers == (LAYER,)
