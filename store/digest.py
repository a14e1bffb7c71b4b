"""`Digest`: the name of some bytes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from .errors import InvalidDigest

# Lower case only: upper-case spellings would give one blob two names.
_SPELLED = re.compile(r"sha256[:-]([0-9a-f]{64})")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, order=True, slots=True)
class Digest:
    """A SHA-256, as 64 lower-case hex digits. None with other contents can exist, so paths made of one are safe."""

    hex: str

    def __post_init__(self) -> None:
        if not isinstance(self.hex, str) or not _HEX.fullmatch(self.hex):
            raise InvalidDigest(_expected(self.hex))

    @classmethod
    def parse(cls, text: str) -> Digest:
        """`sha256:<64 lower-case hex>`, or the same with a dash. Raises `InvalidDigest`."""
        match = _SPELLED.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise InvalidDigest(_expected(text))
        return cls(match[1])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def short(self) -> str:
        """The first 12 digits, for people."""
        return self.hex[:12]

    @property
    def filename(self) -> str:
        return f"sha256-{self.hex}"

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def _expected(got: object) -> str:
    shown = got if isinstance(got, str) and len(got) <= 80 else f"{str(got)[:80]}…"
    return f"expected a digest, sha256: and 64 lower-case hex digits, got {shown!r}"
