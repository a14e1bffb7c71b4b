"""Are an adapter's weights sane numbers? One NaN, or a number whose products overflow, makes every logit NaN, and
greedy decoding then repeats token 0 for ever."""

from __future__ import annotations

from modelctl.gguf_check import Header, Tensor

MAX_WEIGHT = 65504.0  # the largest float16; trained weights stay below 10
_CHUNK = 1 << 22  # elements


def check_finite(header: Header) -> None:
    """Read all weights, of float or quantised types. Raises `InvalidGGUF` that names the first bad tensor."""
    import numpy as np

    with header.path.open("rb") as file:
        for tensor in header.tensors.values():
            file.seek(tensor.offset)
            data = np.frombuffer(file.read(tensor.size), dtype=np.uint8)
            if len(data) != tensor.size:
                raise header.invalid("changed while it was read")
            if not _is_sane(data, tensor):
                wrong = f"NaN, infinity or numbers beyond {MAX_WEIGHT:g}"
                raise header.invalid(f"tensor {tensor.name!r} holds {wrong}; the adapter is damaged")


def _is_sane(data: object, tensor: Tensor) -> bool:
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[tensor.type]
    rows = np.asarray(data).reshape(-1, tensor.size // (tensor.n_elements // tensor.shape[0]))
    n_rows = max(1, _CHUNK // tensor.shape[0])
    with np.errstate(all="ignore"):
        return all(
            bool((np.abs(gguf.dequantize(rows[start : start + n_rows], kind)) <= MAX_WEIGHT).all())
            for start in range(0, len(rows), n_rows)
        )
