"""Just enough of tar: regular files, streamed in order, no names or links acted upon.

The standard library's reader follows extensions (sparse files, links, headers of any length) that an archive from a
stranger must not get to use. This one knows ustar, GNU long names and pax paths and sizes, and refuses the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from .errors import BadArchive

BLOCK = 512
CHUNK = 1 << 20
_EXTENSION_LIMIT = 64 << 10  # bytes of a pax or long-name header
_REGULAR, _FOLDER, _LONG_NAME, _PAX, _PAX_GLOBAL = b"0", b"5", b"L", b"x", b"g"


@dataclass
class _Header:
    name: str
    size: int
    kind: bytes


class Member:
    """One regular file of the archive, to be read before the next is asked for. A `BinaryIO` as far as `read` goes."""

    def __init__(self, name: str, size: int, archive: BinaryIO) -> None:
        self.name, self.size = name, size
        self._archive = archive
        self._left = size

    def read(self, n: int = -1) -> bytes:
        n = self._left if n < 0 else min(n, self._left)
        data = _exactly(self._archive, n, self.name) if n <= CHUNK else self._archive.read(n)
        if n and not data:
            raise _ends(self.name)
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """To the next header."""
        while self._left:
            self.read(CHUNK)
        _exactly(self._archive, -self.size % BLOCK, self.name)


def members(archive: BinaryIO) -> Iterator[Member]:
    """Every regular file, in the archive's order. Raises `BadArchive` for links, devices and anything unknown."""
    longer: dict[str, str] = {}
    while (header := _header(archive)) is not None:
        name = longer.get("path", header.name)
        if header.kind in (_PAX, _LONG_NAME):
            longer |= _extension(archive, header)
            continue
        size = _decimal(longer["size"]) if "size" in longer else header.size
        longer = {}
        member = Member(name, size, archive)
        if header.kind == _REGULAR:
            yield member
        elif header.kind not in (_FOLDER, _PAX_GLOBAL):
            raise BadArchive(f"{name!r:.200} is a link or a special file: an archive of models has none")
        member.skip()


def header(name: str, size: int) -> bytes:
    """A ustar header for a regular file; sizes from 8 GiB on in GNU's base-256."""
    length = b"%011o\0" % size if size < 8**11 else bytes([0x80]) + size.to_bytes(11, "big")
    before = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + length + b"00000000000\0"
    after = _REGULAR + bytes(100) + b"ustar\x0000" + bytes(247)
    checksum = sum(before) + sum(after) + 8 * ord(" ")
    return before + b"%06o\0 " % checksum + after


def _header(archive: BinaryIO) -> _Header | None:
    """The next header; None at the end of the archive."""
    block = archive.read(BLOCK)
    if not block or not any(block):
        return None
    block += _exactly(archive, BLOCK - len(block), "a header")
    checksum = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if _octal(block[148:156]) != checksum:
        raise BadArchive("this is no tar archive, or a damaged one", hint="a compressed one must be unpacked first")
    name = _text(block[:100])
    if block[257:262] == b"ustar" and (prefix := _text(block[345:500])) and block[263:265] == b"00":
        name = f"{prefix}/{name}"
    return _Header(name, _size(block[124:136]), _REGULAR if block[156:157] == b"\0" else block[156:157])


def _extension(archive: BinaryIO, header: _Header) -> dict[str, str]:
    if header.size > _EXTENSION_LIMIT:
        raise BadArchive(f"a header of {header.size} bytes is too long")
    data = _exactly(archive, header.size, "a header")
    _exactly(archive, -header.size % BLOCK, "a header")
    if header.kind == _LONG_NAME:
        return {"path": _text(data)}
    return _pax(data)


def _pax(data: bytes) -> dict[str, str]:
    """Records of `<length> <key>=<value>\\n`; only path and size matter, sparse files are refused."""
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        n = _decimal(length.decode("ascii", "replace"))
        key, is_record, value = data[len(length) + 1 : n].decode("utf-8", "replace").partition("=")
        if not len(length) + 1 < n <= len(data) or not is_record or not value.endswith("\n"):
            raise BadArchive("a damaged pax header")
        if key.startswith("GNU.sparse"):
            raise BadArchive("sparse files are not supported", hint="pack the archive without --sparse")
        if key in ("path", "size"):
            found[key] = value[:-1]
        data = data[n:]
    return found


def _exactly(archive: BinaryIO, n: int, what: str) -> bytes:
    parts = []
    while n:
        data = archive.read(n)
        if not data:
            raise _ends(what)
        parts.append(data)
        n -= len(data)
    return b"".join(parts)


def _ends(what: str) -> BadArchive:
    return BadArchive(f"the archive ends in the middle of {what!r:.200}", hint="fetch or export it again")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not all(b"0"[0] <= digit <= b"7"[0] for digit in digits):
        raise BadArchive("this is no tar archive, or a damaged one", hint="a compressed one must be unpacked first")
    return int(digits or b"0", 8)


def _size(field: bytes) -> int:
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise BadArchive("a damaged pax header")
    return int(text)
