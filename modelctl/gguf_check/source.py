"""A file read from front to back, by someone who does not trust it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from modelctl.errors import BadRequest

MAX_STRING = 16 << 20  # bytes
MAX_STRINGS = 4 << 20  # elements of string arrays, per file; the largest vocabularies with merges have under a million
MAX_TEXT = 32 << 20  # bytes of strings kept in memory, per file

MAX_PROBLEM = 500  # letters

_CHUNK = 1 << 20
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class InvalidFile(BadRequest):
    """A file that cannot be used; the message names it, what was expected and what was found."""

    def __init__(self, path: Path, problem: str, *, hint: str | None = None) -> None:
        if len(problem) > MAX_PROBLEM:  # it may quote what is in the file
            problem = f"{problem[:MAX_PROBLEM]}..."
        super().__init__(f"{path}: {problem}", hint=hint)
        self.problem = problem


class InvalidGGUF(InvalidFile):
    pass


class Source:
    """The file from front to back in buffered pieces. Reading beyond its end is an `InvalidGGUF`.

    Not mmap: a file cut short while mapped is a SIGBUS.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self._file = file
        self._buffer = b""
        self._start = 0  # file offset of the buffer
        self._at = 0  # position in the buffer
        self._text = 0
        self._n_strings = 0

    @property
    def offset(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return self.size - self.offset

    def invalid(self, problem: str, *, hint: str | None = None) -> InvalidGGUF:
        return InvalidGGUF(self.path, problem, hint=hint)

    def take(self, n: int, what: str) -> bytes:
        self._need(n, what)
        data = self._buffer[self._at : self._at + n]
        self._at += n
        return data

    def unpack(self, layout: struct.Struct, what: str) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size, what))

    def u32(self, what: str) -> int:
        return self.unpack(_U32, what)[0]

    def u64(self, what: str) -> int:
        return self.unpack(_U64, what)[0]

    def text(self, limit: int, what: str) -> str:
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise self.invalid(f"{what} has {length} bytes; the limit is {limit}")
        self._text += length
        if self._text > MAX_TEXT:
            raise self.invalid(f"the metadata holds more than {MAX_TEXT >> 20} MiB of text")
        return self.take(length, what).decode(errors="replace")

    def skip(self, n: int, what: str) -> None:
        if n > self.left:
            raise self._truncated(n, what)
        self._at += n
        if self._at > len(self._buffer):
            self._start, self._at, self._buffer = self.offset, 0, b""

    def skip_strings(self, count: int, what: str) -> None:
        """Pass `count` strings; a tight loop, as a vocabulary has 10^5 of them."""
        self._n_strings += count
        if self._n_strings > MAX_STRINGS:
            raise self.invalid(f"its arrays hold more than {MAX_STRINGS} strings")
        unpack, buffer, at = _U64.unpack_from, self._buffer, self._at
        for _ in range(count):
            if at + 8 > len(buffer):
                self._at = at
                self._need(8, what)
                buffer, at = self._buffer, self._at
            length = unpack(buffer, at)[0]
            at += 8 + length
            if at > len(buffer):
                if length > MAX_STRING:
                    raise self.invalid(f"a string of {what} has {length} bytes; the limit is {MAX_STRING}")
                self._at = at - length
                self.skip(length, what)
                buffer, at = self._buffer, self._at
        self._at = at

    def _need(self, n: int, what: str) -> None:
        if n > self.left:
            raise self._truncated(n, what)
        if self._at + n <= len(self._buffer):
            return
        self._start, self._at = self.offset, 0
        self._file.seek(self._start)
        self._buffer = self._file.read(max(n, min(_CHUNK, self.size - self._start)))
        if len(self._buffer) < n:
            raise self.invalid("changed while it was read")

    def _truncated(self, n: int, what: str) -> InvalidGGUF:
        return self.invalid(
            f"truncated or corrupt: {what} needs {n} bytes at offset {self.offset}, the file ends after {self.left}",
            hint="copy or download the file again",
        )
