"""`Layer` and `Manifest`: what a model is made of, in the shape of an OCI image manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from . import media
from .digest import Digest
from .errors import Corrupt, InvalidDigest

MAX_BYTES = 4 << 20  # of a manifest: thousands of layers fit
MAX_SIZE = 1 << 62  # of a blob


@dataclass(frozen=True)
class Layer:
    """A blob with a media type, its size in bytes, and annotations (text to text)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, object]:
        out: dict[str, object] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        return out

    @classmethod
    def from_json(cls, value: object) -> Layer:
        """Raises `Corrupt`."""
        if not isinstance(value, dict):
            raise Corrupt(f"a layer must be an object, not {_kind(value)}")
        media_type, size = value.get("mediaType"), value.get("size")
        if not isinstance(media_type, str) or not media_type:
            raise Corrupt("a layer must have a mediaType")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < MAX_SIZE:
            raise Corrupt("a layer's size must be a number of bytes")
        try:
            digest = Digest.parse(value.get("digest"))  # type: ignore[arg-type]  # parse refuses what is not text
        except InvalidDigest as error:
            raise Corrupt(error.message) from None
        return cls(media_type, digest, size, _annotations(value))


@dataclass(frozen=True)
class Manifest:
    """A config and layers, in order. Equal manifests have equal bytes, and so the same digest: the model's id."""

    config: Layer
    layers: tuple[Layer, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __iter__(self) -> Iterator[Layer]:
        """Every blob it needs: the config, then the layers."""
        yield self.config
        yield from self.layers

    def of_type(self, media_type: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.media_type == media_type)

    @property
    def size(self) -> int:
        """Bytes of all its blobs, each counted once."""
        return sum({layer.digest: layer.size for layer in self}.values())

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, ASCII."""
        out: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        return json.dumps(out, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Reads OCI and Docker (Ollama's) image manifests. Raises `Corrupt`."""
        return cls.from_json(parse_json(data, "manifest"))

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Manifest:
        """Raises `Corrupt`."""
        if value.get("schemaVersion") != 2:
            raise Corrupt(f"expected a manifest of schemaVersion 2, got {value.get('schemaVersion')!r:.40}")
        if value.get("mediaType", media.MANIFEST) not in (media.MANIFEST, media.DOCKER_MANIFEST):
            raise Corrupt(f"expected an image manifest, got {value.get('mediaType')!r:.80}")
        layers = value.get("layers")
        if not isinstance(layers, list):
            raise Corrupt("a manifest must list its layers")
        config = Layer.from_json(value.get("config"))
        return cls(config, tuple(map(Layer.from_json, layers)), _annotations(value))


def parse_json(data: bytes, what: str) -> dict[str, object]:
    """A JSON object out of bytes nobody vouches for. Raises `Corrupt`."""
    if len(data) > MAX_BYTES:
        raise Corrupt(f"the {what} has {len(data)} bytes, more than the {MAX_BYTES} allowed")
    if not data.strip(b"\0"):
        raise Corrupt(f"the {what} holds nothing")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # nesting and digits have limits of their own
        raise Corrupt(f"the {what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Corrupt(f"the {what} must be an object, not {_kind(value)}")
    return value


def _annotations(value: Mapping[str, object]) -> Mapping[str, str]:
    found = value.get("annotations") or {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise Corrupt("annotations must map text to text")
    return found


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
