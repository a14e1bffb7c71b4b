"""What is wrong with a PEFT folder."""

from __future__ import annotations

from modelctl.gguf_check import InvalidFile


class InvalidPeft(InvalidFile):
    """Broken, made for another base, or more than a plain LoRA; the message says which, and names the file."""
