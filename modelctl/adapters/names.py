"""Which tensor of the base a PEFT module is, and what the GGUF did to that tensor on its way from Hugging Face."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from modelctl.gguf_check import Header, InvalidGGUF, counts

# Their rotary embedding turns neighbouring values, where Hugging Face turns the two halves of a head: the rows of q and
# k were reordered when the base became a GGUF, so the rows of their lora_B must be too.
PERMUTED = frozenset({"arcee", "granite", "llama", "mistral3", "olmo", "smollm3"})
# The attention and feed-forward matrices are in the GGUF as they were trained.
PLAIN = frozenset(
    {"cohere2", "command-r", "gemma", "gemma2", "gemma3", "olmo2", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe"}
    | {"starcoder2"}
)
SUPPORTED = PERMUTED | PLAIN

_WRAPPERS = re.compile(r"\b(?:language_model|text_model)\.")  # the text half of a vision model
_BLOCK = re.compile(r"blk\.(\d+)\.attn_([qk])\.weight")


@dataclass(frozen=True, slots=True)
class Names:
    """Module names of Hugging Face's models -> tensor names of one base."""

    base: Header
    known: Any  # gguf.TensorNameMap, which comes without types

    def tensor(self, module: str) -> str | None:
        """model.layers.0.self_attn.q_proj -> blk.0.attn_q.weight; None for a module that the base does not have."""
        plain = _WRAPPERS.sub("", module)
        name = self.known.get_name(plain) or self.known.get_name(f"model.{plain}")
        return f"{name}.weight" if name and f"{name}.weight" in self.base.tensors else None

    def n_rotated_heads(self, tensor: str) -> int | None:
        """The number of heads whose rows the GGUF has reordered in `tensor`; None when they are as trained."""
        match = _BLOCK.fullmatch(tensor)
        if match is None or self.base.architecture not in PERMUTED:
            return None
        n_head = counts(self.base, "attention.head_count")
        per_block = n_head if match[2] == "q" else counts(self.base, "attention.head_count_kv") or n_head
        return per_block[int(match[1])] if len(per_block) > 1 else per_block[0]


def names_for(base: Header) -> Names:
    """Raises `InvalidGGUF` for an architecture whose reordering of weights is not known here."""
    import gguf

    architecture = base.architecture
    if architecture not in SUPPORTED:
        raise unsupported(base)
    known = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    n_blocks = base.metadata.get(f"{architecture}.block_count", 0)
    return Names(base, gguf.get_tensor_name_map(known, n_blocks))


def unsupported(base: Header) -> InvalidGGUF:
    return base.invalid(
        f"PEFT adapters for the architecture {base.architecture!r} cannot be converted here",
        hint="convert it with llama.cpp's convert_lora_to_gguf.py, and give the GGUF file; "
        f"known architectures: {', '.join(sorted(SUPPORTED))}",
    )
