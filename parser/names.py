"""Adapter names, and the nearest known word to a mistyped one."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

ADAPTER_NAME = re.compile(r"[a-zA-Z0-9_\-.:]+")
_EXTENSION = re.compile(r"(?<=.)\.[A-Za-z]\w*$")  # .gguf goes; the .5 of a folder `lora-v1.5` stays


def adapter_name(path: str) -> str:
    """The name of an adapter whose line has no AS: its file's stem, made valid.

    `./loras/math.gguf` -> `math`, `~/My LoRA.gguf` -> `My-LoRA`, `./01.gguf` -> `adapter-01`.
    """
    return valid_name(_EXTENSION.sub("", re.split(r"[/\\]", path.rstrip("/\\"))[-1]))


def valid_name(text: str) -> str:
    """`text` as an adapter name: accents dropped, `-` for anything else that a name may not hold."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    name = re.sub(r"[^a-zA-Z0-9_\-.:]+", "-", plain).strip("-.:")
    return name if reason_against(name) is None else f"adapter-{name}".rstrip("-")


def reason_against(name: str) -> str | None:
    """Why `name` cannot name an adapter; None when it can."""
    if not ADAPTER_NAME.fullmatch(name):
        return "may hold only letters, digits and _ - . :"
    if name.isdigit():
        return "must not be a number: 0, 1, 2 already mean the first, second and third adapter"
    if name.lower() == "none":
        return "is taken: the mix `none` is the bare base model"
    return None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely was meant to be."""
    return next(iter(difflib.get_close_matches(word[:40], known, n=1, cutoff=0.7)), None)
