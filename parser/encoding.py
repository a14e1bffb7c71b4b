"""The bytes of a Modelfile -> its text."""

from __future__ import annotations

import codecs

from .source import ModelfileError, Problem, line_number

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAVE = "save it as UTF-8"


def decode(data: bytes, filename: str = "Modelfile") -> str:
    """UTF-8 with or without byte order mark, or UTF-16 with one; `ModelfileError` for anything else."""
    _refuse_binary(data, filename)
    mark, encoding = next(((mark, name) for mark, name in _BOMS if data.startswith(mark)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ModelfileError([_undecodable(data, len(mark), encoding, error, filename)]) from None


def _refuse_binary(data: bytes, filename: str) -> None:
    if data.startswith(b"GGUF"):
        message = "this is a GGUF model, not a Modelfile"
        raise ModelfileError([Problem(message, f"write a Modelfile with the line FROM {filename}", filename)])
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise ModelfileError([Problem("this file is in UTF-32", _SAVE, filename)])
    if len(data) > 1 and 0 in data[:2] and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ModelfileError([Problem("this file is binary, or in UTF-16 without a byte order mark", _SAVE, filename)])


def _undecodable(data: bytes, skip: int, encoding: str, error: UnicodeDecodeError, filename: str) -> Problem:
    """Points at the first byte that is wrong."""
    text = data[skip : skip + error.start].decode(encoding) + "\N{REPLACEMENT CHARACTER}"
    at = len(text) - 1
    first = max(text.rfind("\n"), text.rfind("\r")) + 1
    name = encoding[:6].upper()
    message = f"byte 0x{data[skip + error.start]:02x} is not {name}"
    hint = _SAVE if name == "UTF-16" else f"{_SAVE}; it looks like an older encoding such as Windows-1252"
    return Problem(message, hint, filename, line_number(text, at), at - first + 1, 1, text[first:])
