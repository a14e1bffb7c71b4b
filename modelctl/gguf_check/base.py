"""Is this GGUF a base that llama.cpp loads? The rules are the malformed files that end its process, and the common
mistakes; llama.cpp itself checks the rest, in the runner."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from modelctl.gguf_check.ggml_types import FILE_TYPES, NOT_WEIGHTS
from modelctl.gguf_check.reader import Array, Header, Tensor

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MMAP_ALIGNMENT = 32  # ggml asserts it of every buffer, and the mapped file is one
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
FLOAT_RANGES = {
    "attention.layer_norm_rms_epsilon": (0.0, 1.0),
    "attention.layer_norm_epsilon": (0.0, 1.0),
    "rope.freq_base": (1.0, 1e30),
    "rope.freq_base_swa": (1.0, 1e30),
    "rope.scaling.factor": (1e-6, 1e6),
}

NO_BYTES = ("bert", "rwkv")  # tokenizers that llama.cpp aborts in when asked for the byte of a byte token
BYTE = 6  # the token type of byte tokens

_BLOCK = re.compile(r"blk\.(\d+)\.")
_ATTENTION = re.compile(r"blk\.\d+\.attn_(q|qkv)\.weight")


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What `show` prints. `head_count` and `head_count_kv` are the largest over the blocks; 0 without attention."""

    architecture: str
    name: str
    n_params: int
    context_length: int
    embedding_length: int
    block_count: int
    head_count: int
    head_count_kv: int
    quantization: str
    size: int
    chat_template: str | None


def check_base(header: Header) -> BaseInfo:
    """What the base is. Raises `InvalidGGUF` for an adapter, a projector, and what would end llama.cpp's process."""
    _check_kind(header)
    _check_sizes(header)
    _check_tensors(header)
    _check_vocabulary(header)
    return base_info(header)


def base_info(header: Header) -> BaseInfo:
    """The summary of a header that `check_base` has passed."""
    architecture = header.architecture
    n_head = max(counts(header, "attention.head_count"), default=0)
    return BaseInfo(
        architecture=architecture,
        name=_string(header, "general.name") or header.path.stem,
        n_params=sum(tensor.n_elements for tensor in header.tensors.values()),
        context_length=integer(header, f"{architecture}.context_length", 0),
        embedding_length=integer(header, f"{architecture}.embedding_length", 0),
        block_count=integer(header, f"{architecture}.block_count", 0),
        head_count=n_head,
        head_count_kv=max(counts(header, "attention.head_count_kv"), default=n_head),
        quantization=_quantization(header),
        size=header.file_size,
        chat_template=_string(header, "tokenizer.chat_template") or None,
    )


def integer(header: Header, key: str, default: int | None = None) -> int:
    """The number under `key`. Raises `InvalidGGUF` when it is no UINT32, all llama.cpp takes, or missing without a
    default."""
    value = header.metadata.get(key, default)
    if value is None:
        raise header.invalid(f"metadata {key!r} is missing; expected a UINT32")
    if not isinstance(value, int) or header.types.get(key, "UINT32") != "UINT32":
        raise header.invalid(f"metadata {key!r} must be a UINT32, found {header.types[key]}")
    return value


def counts(header: Header, name: str) -> list[int]:
    """`{architecture}.{name}`, which is one integer, or an array with one for each block. Empty when missing."""
    key = f"{header.architecture}.{name}"
    value = header.metadata.get(key)
    if not isinstance(value, Array):
        return [] if value is None else [integer(header, key)]
    if value.type not in ("UINT32", "INT32"):
        raise header.invalid(f"metadata {key!r} must hold 32-bit integers, found {value.type}")
    if value.length > MAX_BLOCKS:
        raise header.invalid(f"metadata {key!r} has {value.length} elements; the limit is {MAX_BLOCKS}")
    return [int(element) for element in value.values()]


def _string(header: Header, key: str, default: str = "") -> str:
    value = header.metadata.get(key, default)
    if not isinstance(value, str):
        raise header.invalid(f"metadata {key!r} must be a string, found {header.types[key]}")
    return value


def _check_kind(header: Header) -> None:
    kind = _string(header, "general.type") or "model"
    if kind == "adapter":
        raise header.invalid("is a LoRA adapter; FROM needs a base model", hint="name it in an ADAPTER line instead")
    if kind != "model":
        raise header.invalid(f"has general.type {kind!r}; expected 'model'")
    if not _string(header, "general.architecture"):
        raise header.invalid("metadata 'general.architecture' is missing; expected the model's architecture")
    if header.architecture == "clip":
        raise header.invalid("is an image projector (architecture 'clip'); FROM needs a language model")
    n_parts = header.metadata.get("split.count", 1)
    if isinstance(n_parts, int) and n_parts > 1:
        hint = "merge the parts with `llama-gguf-split --merge`, and give the one file"
        raise header.invalid(f"is one of {n_parts} parts of a split model; expected a whole one", hint=hint)
    if not header.tensors:
        raise header.invalid("holds no tensors; expected a model with its weights")


def _check_sizes(header: Header) -> None:
    architecture = header.architecture
    _in_range(header, f"{architecture}.block_count", 1, MAX_BLOCKS)
    _in_range(header, f"{architecture}.embedding_length", 1, 1 << 20)
    _in_range(header, f"{architecture}.context_length", 1, (1 << 31) - 1)
    _check_heads(header)
    _check_experts(header)
    _check_floats(header)
    scaling = _string(header, f"{architecture}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        raise header.invalid(f"has the unknown rope scaling {scaling!r}; expected one of {', '.join(ROPE_SCALINGS)}")


def _in_range(header: Header, key: str, low: int, high: int) -> None:
    value = integer(header, key)
    if not low <= value <= high:
        raise header.invalid(f"metadata {key!r} must be from {low} to {high}, found {value}")


def _check_heads(header: Header) -> None:
    """Where there are attention matrices, there are heads, and they share the key/value heads evenly."""
    if not any(_ATTENTION.match(name) for name in header.tensors):
        return
    n_head = counts(header, "attention.head_count")
    n_kv = counts(header, "attention.head_count_kv") or n_head
    for name, numbers in (("head_count", n_head), ("head_count_kv", n_kv)):
        if max(numbers, default=0) < 1 or min(numbers) < 0:
            key = f"{header.architecture}.attention.{name}"
            raise header.invalid(f"metadata {key!r} must be 1 or more")
    if len(n_head) == len(n_kv) == 1 and n_head[0] % n_kv[0]:
        raise header.invalid(f"{n_head[0]} attention heads cannot share {n_kv[0]} key/value heads evenly")


def _check_experts(header: Header) -> None:
    key = f"{header.architecture}.expert_count"
    n_experts = integer(header, key, 0)
    n_used = max(counts(header, "expert_used_count"), default=0)
    if n_experts > MAX_EXPERTS:
        raise header.invalid(f"metadata {key!r} must be at most {MAX_EXPERTS}, found {n_experts}")
    dense = header.architecture.startswith("hunyuan")  # writes one unused expert into its dense models
    if n_used > n_experts or (n_experts > dense and not n_used):
        raise header.invalid(f"uses {n_used} of {n_experts} experts at a time; expected 1 to {n_experts}")


def _check_floats(header: Header) -> None:
    """No parameter of the architecture may be NaN or infinite: one is enough to make every logit NaN."""
    prefix = f"{header.architecture}."
    for key, value in header.metadata.items():
        if not key.startswith(prefix) or not isinstance(value, float):
            continue
        name = key.removeprefix(prefix)
        if name == "rope.scaling.factor" and value == 0:  # how llama.cpp spells "none"
            continue
        low, high = FLOAT_RANGES.get(name, (-math.inf, math.inf))
        if not math.isfinite(value) or not low <= value <= high:
            limits = f"from {low:g} to {high:g}" if math.isfinite(low) else "finite"
            raise header.invalid(f"metadata {key!r} must be {limits}, found {value:g}")


def _check_tensors(header: Header) -> None:
    key = f"{header.architecture}.block_count"
    n_blocks = integer(header, key)
    blocks = {int(match[1]) for name in header.tensors if (match := _BLOCK.match(name))}
    if blocks and max(blocks) >= n_blocks:
        raise header.invalid(f"has tensors for block {max(blocks)}, but {key!r} is {n_blocks}")
    if header.alignment % MMAP_ALIGNMENT:
        raise header.invalid(
            f"has general.alignment {header.alignment}; llama.cpp maps bases that have 32 or a multiple"
        )
    for tensor in header.tensors.values():
        _check_type(header, tensor)


def _check_type(header: Header, tensor: Tensor) -> None:
    """Norms, biases and scales meet float32 activations element by element, which ggml does for F32 only. Matrices may
    be floats or quantised, never integers."""
    name = tensor.name
    if name.endswith(("_norm.weight", ".bias", ".scale", "rope_freqs.weight")) and tensor.type != "F32":
        raise header.invalid(f"tensor {name!r} has type {tensor.type}; expected F32")
    if len(tensor.shape) > 1 and name.endswith(".weight") and tensor.type in NOT_WEIGHTS:
        raise header.invalid(f"tensor {name!r} has type {tensor.type}; expected a float or quantised type")


def _check_vocabulary(header: Header) -> None:
    tokenizer = _string(header, "tokenizer.ggml.model")
    if tokenizer in ("", "none", "no_vocab"):
        return
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array) or tokens.type != "STRING" or not tokens.length:
        raise header.invalid("metadata 'tokenizer.ggml.tokens' must be an array of strings, the vocabulary")
    _check_array(header, "tokenizer.ggml.scores", ("FLOAT32", "INT32"), tokens.length)
    _check_array(header, "tokenizer.ggml.token_type", ("INT32",), tokens.length)
    _check_array(header, "tokenizer.ggml.merges", ("STRING",), 0)
    _check_duplicates(header, tokens)
    types = header.metadata.get("tokenizer.ggml.token_type")
    if tokenizer in NO_BYTES and isinstance(types, Array) and BYTE in types.values():
        raise header.invalid(f"the vocabulary has byte tokens, which its tokenizer {tokenizer!r} does not know")


def _check_array(header: Header, key: str, types: tuple[str, ...], at_least: int) -> None:
    value = header.metadata.get(key)
    if value is None:
        return
    if not isinstance(value, Array) or value.type not in types:
        found = value.type if isinstance(value, Array) else header.types[key]
        raise header.invalid(f"metadata {key!r} must be an array of {' or '.join(types)}, found {found}")
    if value.length < at_least:
        raise header.invalid(f"metadata {key!r} has {value.length} elements for a vocabulary of {at_least}")


def _check_duplicates(header: Header, tokens: Array) -> None:
    """llama.cpp asserts that tokens differ; it gives empty ones a name of their own."""
    words = [word for word in tokens.values() if word]
    if len(set(words)) != len(words):
        word, times = Counter(words).most_common(1)[0]
        raise header.invalid(f"the vocabulary has {times} tokens {word!r}; every token must be unique")


def _quantization(header: Header) -> str:
    file_type = header.metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    elements: Counter[str] = Counter()
    for tensor in header.tensors.values():
        elements[tensor.type] += tensor.n_elements
    return elements.most_common(1)[0][0]
