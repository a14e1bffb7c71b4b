"""A PEFT adapter folder -> a LoRA GGUF that llama.cpp applies just as PEFT would. numpy, gguf and safetensors only.

The weights are written as float32, whatever they were. Measured against PEFT's own logits, on an unquantised base, the
difference is the base's own (0.02 on a range of 40) for F32 and F16, and more for BF16 (0.04), whose kernel rounds the
activations, too. F16 would halve the file (0.9 MB for the example adapters), but F32 is exact, cannot overflow, and is
hardly slower: 14.0 ms a token against 15.7 at rank 16 on all matrices of a 135M base, 16.8 against 14.9 at rank 64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelctl.adapters.errors import InvalidPeft
from modelctl.adapters.names import Names, names_for
from modelctl.adapters.peft_config import PeftConfig, read_config
from modelctl.adapters.safetensors_file import DTYPES, Entry, load, read_entries
from modelctl.errors import ModelctlError
from modelctl.gguf_check import Header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_PREFIX = "base_model.model."
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class Delta:
    """One matrix's pair in the PEFT file, and where it goes. A is [rank, n_in], B is [n_out, rank], numpy's order."""

    module: str
    target: str
    a: Entry
    b: Entry
    n_heads: int | None
    factor: float  # what B must be multiplied by, so that alpha / rank of the GGUF comes out as PEFT's scaling

    @property
    def size(self) -> int:
        return self.a.size + self.b.size


def convert(folder: Path, base: Header, out: Path, progress: Progress | None = None) -> None:
    """Write the adapter in `folder`, made for `base`, to `out`. The same input gives the same bytes.

    Raises `InvalidPeft` for what is wrong in the folder, `InvalidGGUF` for a base of an architecture that is not known
    here, `ModelctlError` when `out` cannot be written. It is then not left behind.
    """
    config = read_config(folder)
    weights = _weights(folder)
    names = names_for(base)
    alpha = config.scaling_of("") * config.rank_of("")  # alpha, or alpha * sqrt(rank) under rsLoRA
    deltas = _deltas(weights, read_entries(weights), config, names, alpha)
    try:
        _write(out, base.architecture, alpha, weights, deltas, progress)
    except BaseException as error:
        out.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ModelctlError(f"cannot write {out}: {error.strerror or error}") from None
        raise


def _weights(folder: Path) -> Path:
    weights = folder / WEIGHTS
    if weights.is_file():
        return weights
    if (folder / PICKLE).exists():
        raise InvalidPeft(
            folder / PICKLE,
            f"a pickle can run any code when loaded, so it never is; expected {WEIGHTS}",
            hint="save the adapter again with save_pretrained(..., safe_serialization=True)",
        )
    raise InvalidPeft(weights, "no such file", hint="a PEFT folder holds adapter_config.json and " + WEIGHTS)


def _deltas(path: Path, entries: dict[str, Entry], config: PeftConfig, names: Names, alpha: float) -> list[Delta]:
    """One for each adapted matrix, sorted by the tensor it adapts, each checked against the base."""
    halves: dict[str, dict[str, Entry]] = {}
    for entry in entries.values():
        module, half = _module(path, entry)
        if half in halves.setdefault(module, {}):
            raise InvalidPeft(path, f"module {module!r} has two tensors lora_{half}")
        halves[module][half] = entry
    if not halves:
        raise InvalidPeft(path, "holds no tensors; expected lora_A and lora_B weights")
    deltas: dict[str, Delta] = {}
    for module, found in halves.items():
        delta = _delta(path, module, found, config, names, alpha)
        if other := deltas.get(delta.target):
            raise InvalidPeft(
                path, f"{other.module!r} and {module!r} are the same tensor of the base, {delta.target!r}"
            )
        deltas[delta.target] = delta
    return [deltas[target] for target in sorted(deltas)]


def _module(path: Path, entry: Entry) -> tuple[str, str]:
    match = _HALF.fullmatch(entry.name)
    if match is None:
        raise InvalidPeft(path, f"tensor {entry.name!r}: {_why_not(entry.name)}", hint="merge it into the base")
    if entry.dtype not in DTYPES:
        raise InvalidPeft(path, f"tensor {entry.name!r} has dtype {entry.dtype}; expected {', '.join(DTYPES)}")
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise InvalidPeft(path, f"tensor {entry.name!r} has the shape {list(entry.shape)}; expected a matrix")
    return match["module"].removeprefix(_PREFIX), match["half"]


def _why_not(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return "a DoRA magnitude, which is unsupported"
    if "lora_embedding_" in name:
        return "LoRA on the embedding, which is unsupported"
    if name.endswith((".lora_A.bias", ".lora_B.bias", ".bias")):
        return "a trained bias, which is unsupported"
    if re.search(r"embed_tokens|lm_head", name):
        return "whole embeddings, saved when tokens were added in training, which are unsupported"
    return "not a plain LoRA weight; expected names that end in lora_A.weight or lora_B.weight"


def _delta(path: Path, module: str, found: dict[str, Entry], config: PeftConfig, names: Names, alpha: float) -> Delta:
    if missing := {"A", "B"} - found.keys():
        raise InvalidPeft(path, f"module {module!r} has no lora_{missing.pop()}.weight")
    target = names.tensor(module)
    if target is None:
        raise _not_in_base(path, module, names.base)
    _check_shapes(path, module, found["A"], found["B"], config.rank_of(module), names.base, target)
    factor = config.scaling_of(module) * config.rank_of(module) / alpha
    return Delta(module, target, found["A"], found["B"], names.n_rotated_heads(target), factor)


def _not_in_base(path: Path, module: str, base: Header) -> InvalidPeft:
    hint = "use the base that the adapter was trained on"
    if module.endswith("lm_head"):
        hint = "this base uses its embedding for the output, which LoRA cannot change alone; train without lm_head"
    n_blocks = base.metadata.get(f"{base.architecture}.block_count")
    known = f"architecture {base.architecture}, {n_blocks} blocks"
    return InvalidPeft(path, f"the base ({known}) has no module {module!r}, or it is not a single matrix", hint=hint)


def _check_shapes(path: Path, module: str, a: Entry, b: Entry, rank: int, base: Header, target: str) -> None:
    (rank_a, n_in), (n_out, rank_b) = a.shape, b.shape
    weight = base.tensors[target].shape
    if (n_in, n_out) != weight:
        raise InvalidPeft(
            path,
            f"module {module!r} is {n_in} -> {n_out}; in the base it is {' -> '.join(map(str, weight))}",
            hint="use the base that the adapter was trained on",
        )
    if not rank_a == rank_b == rank:
        raise InvalidPeft(
            path,
            f"module {module!r} has lora_A of rank {rank_a} and lora_B of rank {rank_b}; "
            f"adapter_config.json says {rank}",
        )


def _write(
    out: Path, architecture: str, alpha: float, weights: Path, deltas: list[Delta], progress: Progress | None
) -> None:
    """The data follows the header one matrix at a time, so that memory stays at one matrix."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(out, architecture)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for delta in deltas:
            for half, entry in (("lora_a", delta.a), ("lora_b", delta.b)):
                n_bytes = 4 * entry.shape[0] * entry.shape[1]
                writer.add_tensor_info(f"{delta.target}.{half}", entry.shape, np.dtype(np.float32), n_bytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with np.errstate(all="ignore"):  # NaN and overflow are reported by check_finite, with the tensor's name
            for array in _arrays(weights, deltas, progress):
                writer.write_tensor_data(np.ascontiguousarray(array))
    finally:
        writer.close()


def _arrays(weights: Path, deltas: list[Delta], progress: Progress | None) -> Iterator[Array]:
    """A and B of each matrix, as llama.cpp multiplies them."""
    total, done = sum(delta.size for delta in deltas), 0
    for delta in deltas:
        yield load(weights, delta.a)
        yield rotated(load(weights, delta.b), delta.n_heads) * delta.factor
        done += delta.size
        if progress:
            progress(done, total)


def rotated(b: Array, n_heads: int | None) -> Array:
    """The rows of B, [n_heads * 2 * half, rank], from Hugging Face's order within a head (first halves, then second
    halves) to llama.cpp's (in pairs). The same array when `n_heads` is None."""
    if n_heads is None:
        return b
    return b.reshape(n_heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
