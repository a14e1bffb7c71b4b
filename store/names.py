"""Model names: `[host[:port]/][namespace/]model[:tag][@sha256:…]`, Ollama's grammar and limits.

A part starts with an ASCII letter, digit or `_`, goes on with those, `-` and (except in a namespace) `.`, and has at
most 80 characters; a host may have a port and 350. `..` occurs nowhere. A digest after `@` pins it to a manifest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .digest import Digest
from .errors import InvalidName

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"

_NAME = re.compile(
    r"""(?: https?:// )?
        (?: (?: (?P<host> [A-Za-z0-9_] [A-Za-z0-9_.:-]{0,349} ) / )?
            (?P<namespace> [A-Za-z0-9_] [A-Za-z0-9_-]{0,79} ) / )?
        (?P<model> [A-Za-z0-9_] [A-Za-z0-9_.-]{0,79} )
        (?: : (?P<tag> [A-Za-z0-9_] [A-Za-z0-9_.-]{0,79} ) )?
        (?: @ (?P<digest> .+ ) )?""",
    re.VERBOSE,
)
# "C:x" would be a model C with tag x, and is far more likely a path typed on another system.
_DRIVE = re.compile(r"[A-Z]:.*", re.DOTALL)


@dataclass(frozen=True, order=True, slots=True)
class ModelName:
    """A complete, valid name. `digest` is set when it is pinned (`tutor@sha256:…`)."""

    host: str
    namespace: str
    model: str
    tag: str
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Raises `InvalidName`, or `InvalidDigest` for what follows `@`."""
        match = _NAME.fullmatch(text) if isinstance(text, str) else None
        if match is None or ".." in text or _DRIVE.fullmatch(text):
            raise _invalid(text)
        host, namespace, model, tag, digest = match.groups()
        pinned = Digest.parse(digest) if digest else None
        return cls(host or HOST, namespace or NAMESPACE, model, tag or TAG, pinned)

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The folders and the file that stand for the name."""
        return self.host, self.namespace, self.model, self.tag

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Equal for names that differ only in case: they are one model."""
        return self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower()

    @property
    def unpinned(self) -> ModelName:
        return replace(self, digest=None)

    @property
    def short(self) -> str:
        """Without the default host and namespace, always with the tag: `tutor:latest`."""
        if self.host.lower() != HOST:
            return str(self)
        namespace = "" if self.namespace.lower() == NAMESPACE else f"{self.namespace}/"
        short = f"{namespace}{self.model}:{self.tag}{self._pin}"
        return f"{NAMESPACE}/{short}" if _DRIVE.match(short) else short

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}{self._pin}"

    @property
    def _pin(self) -> str:
        return f"@{self.digest}" if self.digest else ""


def _invalid(text: object) -> InvalidName:
    shown = text if isinstance(text, str) and len(text) <= 80 else f"{str(text)[:80]}…"
    return InvalidName(
        f"{shown!r} is not a model name",
        hint="names look like tutor, tutor:v2 or me/tutor:v2, of letters, digits, `_`, `-` and `.`",
    )
