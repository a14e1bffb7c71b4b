"""Strict, bounded reading of GGUF headers, with typed errors and no native code.

header = read_header(path)            any GGUF file
info = check_base(header)             a base: what FROM takes
info = check_adapter(header, base)    a LoRA adapter that fits that base: what ADAPTER takes
"""

from __future__ import annotations

from modelctl.gguf_check.adapter import AdapterInfo, Pair, check_adapter, lora_alpha, lora_pairs
from modelctl.gguf_check.base import BaseInfo, base_info, check_base, counts, integer
from modelctl.gguf_check.reader import Array, Header, Tensor, read_header
from modelctl.gguf_check.source import InvalidFile, InvalidGGUF

__all__ = [
    "AdapterInfo",
    "Array",
    "BaseInfo",
    "Header",
    "InvalidFile",
    "InvalidGGUF",
    "Pair",
    "Tensor",
    "base_info",
    "check_adapter",
    "check_base",
    "counts",
    "integer",
    "lora_alpha",
    "lora_pairs",
    "read_header",
]
