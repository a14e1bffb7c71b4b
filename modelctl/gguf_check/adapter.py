"""Does this LoRA adapter fit that base? llama.cpp checks little of it, and dies on much of the rest at the first
decode, so a file passes here before anything native sees it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from modelctl.gguf_check.ggml_types import NOT_WEIGHTS
from modelctl.gguf_check.reader import Header, Tensor
from modelctl.gguf_check.source import InvalidGGUF

MAX_ALPHA = 1e6  # far beyond any trained adapter; larger ones overflow float32 downstream

_BLOCK = re.compile(r"blk\.(\d+)\.")
_FROM_EMBEDDING = re.compile(r"blk\.\d+\.(attn_q|attn_k|attn_v|attn_qkv|ffn_up|ffn_gate)\.weight")
_EMBEDDING = "token_embd.weight"


class Pair(NamedTuple):
    """The two factors of one matrix's delta, B @ A."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """`alpha` is None where the file has none: then llama.cpp takes the scale as it is, without alpha / rank.

    `rank` is the largest of `ranks`. `target_modules` are GGUF names, as in ("attn_q", "attn_v"); `n_matrices` of the
    base's `n_candidates` matrices of those names have a delta."""

    rank: int
    ranks: tuple[int, ...]
    alpha: float | None
    target_modules: tuple[str, ...]
    n_tensors: int
    n_matrices: int
    n_candidates: int

    @property
    def covered(self) -> str:
        return f"{self.n_matrices}/{self.n_candidates} matrices"


def check_adapter(header: Header, base: Header) -> AdapterInfo:
    """What the adapter is. Raises `InvalidGGUF` unless it is a LoRA whose every pair fits a matrix of `base`.

    Only headers are read: that the weights are finite is `modelctl.adapters.check_finite`'s to say.
    """
    _check_kind(header, base)
    alpha = lora_alpha(header)
    pairs = lora_pairs(header)
    for target, pair in pairs.items():
        _check_pair(header, base, target, pair)
    modules = {_module(target) for target in pairs}
    ranks = tuple(sorted({pair.b.shape[0] for pair in pairs.values()}))
    return AdapterInfo(
        rank=ranks[-1],
        ranks=ranks,
        alpha=alpha,
        target_modules=tuple(sorted(modules)),
        n_tensors=len(header.tensors),
        n_matrices=len(pairs),
        n_candidates=sum(_module(name) in modules for name in base.tensors if name.endswith(".weight")),
    )


def _check_kind(header: Header, base: Header) -> None:
    for key in ("general.type", "general.architecture", "adapter.type"):
        if header.types.get(key, "STRING") != "STRING":
            raise header.invalid(f"metadata {key!r} must be a string, found {header.types[key]}")
    if header.general_type != "adapter":
        hint = "a base model belongs in the FROM line" if header.general_type == "model" else None
        raise header.invalid(
            f"is a {header.general_type}, not a LoRA adapter (general.type must be 'adapter')", hint=hint
        )
    kind = header.metadata.get("adapter.type", "missing")
    if kind != "lora":
        raise header.invalid(f"has adapter.type {kind!r}; expected 'lora'")
    if header.architecture != base.architecture:
        made_for = header.architecture or "missing"
        problem = f"made for the architecture {made_for!r}; the base is {base.architecture!r}"
        raise header.invalid(problem, hint="use the base it was trained on")
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise header.invalid("is an activated LoRA (aLoRA), which acts only after its invocation tokens; unsupported")


def lora_alpha(header: Header) -> float | None:
    """None where the file has none. Raises `InvalidGGUF` for anything but a finite float of sensible size."""
    alpha = header.metadata.get("adapter.lora.alpha")
    if alpha is None:
        return None
    if header.types["adapter.lora.alpha"] != "FLOAT32" or not isinstance(alpha, float):
        raise header.invalid(
            f"metadata 'adapter.lora.alpha' must be FLOAT32, found {header.types['adapter.lora.alpha']}"
        )
    if not math.isfinite(alpha) or abs(alpha) > MAX_ALPHA:
        raise header.invalid(f"metadata 'adapter.lora.alpha' must be finite and at most {MAX_ALPHA:g}, found {alpha:g}")
    return alpha


def lora_pairs(header: Header) -> dict[str, Pair]:
    """{name of the base's tensor: its pair}, in file order. Raises `InvalidGGUF` for anything but complete pairs."""
    if not header.tensors:
        raise header.invalid("holds no tensors; expected pairs of lora_a and lora_b")
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in header.tensors.items():
        target, _, half = name.rpartition(".")
        if half not in ("lora_a", "lora_b") or not target:
            raise _not_lora(header, name)
        halves.setdefault(target, {})[half] = tensor
    for target, found in halves.items():
        if len(found) == 1:
            (half,) = found
            other = "lora_b" if half == "lora_a" else "lora_a"
            raise header.invalid(f"tensor {f'{target}.{half}'!r} has no partner {other}")
    return {target: Pair(found["lora_a"], found["lora_b"]) for target, found in halves.items()}


def _not_lora(header: Header, name: str) -> InvalidGGUF:
    if name.endswith("_norm.weight"):
        return header.invalid(
            f"tensor {name!r} replaces a norm, which llama.cpp silently skips; expected lora_a and lora_b only",
            hint="train the adapter without its norms, or merge it into the base",
        )
    return header.invalid(f"tensor {name!r} is no LoRA tensor; expected names that end in .lora_a or .lora_b")


def _check_pair(header: Header, base: Header, target: str, pair: Pair) -> None:
    weight = base.tensors.get(target)
    if weight is None:
        raise _unknown_target(header, base, target)
    for tensor in pair:
        if len(tensor.shape) != 2:
            raise header.invalid(f"tensor {tensor.name!r} has the shape {list(tensor.shape)}; expected 2 dimensions")
        if tensor.type in NOT_WEIGHTS:
            raise header.invalid(f"tensor {tensor.name!r} has type {tensor.type}; expected a float or quantised type")
    if len(weight.shape) != 2:
        raise header.invalid(f"tensor {target!r} of the base has the shape {list(weight.shape)}; LoRA needs a matrix")
    if weight.type == "NVFP4":  # llama.cpp asserts that such matrices have no LoRA
        raise header.invalid(f"adapts {target!r}, which is NVFP4 in the base; llama.cpp takes no LoRA on that type")
    if target == _EMBEDDING:
        _check_embedding(header, base, weight, pair)
    else:
        _check_shapes(header, base, weight, pair)


def _check_shapes(header: Header, base: Header, weight: Tensor, pair: Pair) -> None:
    """Base [n_in, n_out], A [n_in, rank], B [rank, n_out]; all in ggml's order."""
    (n_in, n_out), (a_in, rank_a), (rank_b, b_out) = weight.shape, pair.a.shape, pair.b.shape
    if a_in != n_in and _FROM_EMBEDDING.fullmatch(weight.name):
        raise _other_size(header, a_in, n_in, weight.name)
    if (a_in, b_out) != (n_in, n_out):
        raise header.invalid(
            f"{weight.name!r} is {n_in} -> {n_out} in the base; the adapter has {a_in} -> {b_out}",
            hint="the adapter was made for another base",
        )
    if rank_a != rank_b:
        raise header.invalid(f"{pair.a.name!r} has rank {rank_a}, its lora_b has rank {rank_b}; expected the same")


def _check_embedding(header: Header, base: Header, weight: Tensor, pair: Pair) -> None:
    """The embedding is looked up, not multiplied: A is [rank, n_vocab], B [rank, n_embd]."""
    (n_embd, n_vocab), (rank_a, a_out), (rank_b, b_out) = weight.shape, pair.a.shape, pair.b.shape
    if "output.weight" not in base.tensors:
        raise header.invalid(f"adapts {weight.name!r}, which the base uses for its output too; unsupported")
    if b_out != n_embd:
        raise _other_size(header, b_out, n_embd, weight.name)
    if a_out != n_vocab:
        raise header.invalid(f"made for a base with {a_out} tokens; this base has {n_vocab} ({weight.name!r})")
    if rank_a != rank_b:
        raise header.invalid(f"{pair.a.name!r} has rank {rank_a}, its lora_b has rank {rank_b}; expected the same")


def _other_size(header: Header, made_for: int, found: int, name: str) -> InvalidGGUF:
    return header.invalid(
        f"this adapter was made for a base with embedding {made_for}; this base has {found} ({name!r})",
        hint="use the base it was trained on",
    )


def _unknown_target(header: Header, base: Header, target: str) -> InvalidGGUF:
    block, blocks = _block(target), [_block(name) for name in base.tensors]
    n_blocks = max(blocks, default=-1) + 1
    if block >= n_blocks > 0:
        return header.invalid(f"has tensors for block {block}; the base has {n_blocks} blocks")
    return header.invalid(f"adapts {target!r}, a tensor which the base does not have")


def _block(name: str) -> int:
    match = _BLOCK.match(name)
    return int(match[1]) if match else -1


def _module(name: str) -> str:
    """ "blk.3.attn_q.weight" -> "attn_q"."""
    return _BLOCK.sub("", name).removesuffix(".weight")
