"""Every PARAMETER: one table that the parser, the API's options, the runner and `modelctl help parameters` read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from .literals import number_hint, read_float, read_int
from .names import nearest
from .source import clipped, quoted
from .values import COMMENT_HINT

Scalar = int | float | bool | str
MAX_INT = 2**31 - 1
MAX_FLOAT = 3.4028234663852886e38  # the largest float32


class ParameterError(ValueError):
    """A name that is no parameter, or a value that it cannot take."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class ParameterSpec:
    name: str
    type: type[Scalar]
    default: Scalar | None  # None: decided when the model is loaded; `stop`, the one that repeats, has no stops
    low: float | None
    high: float | None
    help: str
    deprecated: bool = False


class Row(NamedTuple):
    """One line of `modelctl help parameters`."""

    name: str
    type: str
    default: str
    range: str
    help: str


def _int(name: str, default: int | None, low: int, help: str, high: int = MAX_INT) -> ParameterSpec:
    return ParameterSpec(name, int, default, low, high, help)


def _float(name: str, default: float, low: float, high: float, help: str) -> ParameterSpec:
    return ParameterSpec(name, float, default, low, high, help)


def _deprecated(name: str) -> ParameterSpec:
    return ParameterSpec(name, str, None, None, None, "accepted for old files; has no effect", deprecated=True)


_TABLE = (
    _float("temperature", 0.8, 0, 100, "how freely tokens are chosen; 0 always takes the likeliest"),
    _int("top_k", 40, -1, "choose among this many likeliest tokens; 0 or -1: all"),
    _float("top_p", 0.9, 0, 1, "choose among the likeliest tokens that together reach this probability; 1: all"),
    _float("min_p", 0.0, 0, 1, "drop tokens less likely than this share of the likeliest one; 0: off"),
    _float("typical_p", 1.0, 0, 1, "keep the tokens whose surprise is typical, up to this probability; 1: off"),
    _int("seed", -1, -1, "the same seed and prompt give the same answer; -1: a new one each time", high=2**32 - 1),
    _int("num_predict", -1, -2, "most tokens in an answer; -1: no limit, -2: until the context is full"),
    ParameterSpec("stop", str, None, None, None, "end the answer before this text; repeat the line for several"),
    _float("repeat_penalty", 1.0, 0.01, 100, "above 1, make tokens that were just used less likely; 1: off"),
    _int("repeat_last_n", 64, -1, "how many recent tokens the penalties look at; 0: off, -1: the whole context"),
    _float("presence_penalty", 0.0, -100, 100, "above 0, make tokens less likely once they were used"),
    _float("frequency_penalty", 0.0, -100, 100, "above 0, make tokens less likely for each time they were used"),
    _int("mirostat", 0, 0, "choose tokens by Mirostat 1 or 2 instead of top_k, top_p and min_p; 0: off", high=2),
    _float("mirostat_tau", 5.0, 0, 100, "the surprise that Mirostat aims at"),
    _float("mirostat_eta", 0.1, 0, 1, "how fast Mirostat corrects itself"),
    _float("dry_multiplier", 0.0, 0, 100, "above 0, make tokens less likely that would repeat a longer passage (DRY)"),
    _float("dry_base", 1.75, 1, 100, "how fast DRY's penalty grows with the passage's length"),
    _int("dry_allowed_length", 2, 0, "the longest passage that DRY lets repeat freely"),
    _float("xtc_probability", 0.0, 0, 1, "how often the likeliest tokens are skipped for surprise (XTC); 0: off"),
    _float("xtc_threshold", 0.1, 0, 1, "XTC skips all but the least likely of the tokens above this probability"),
    _int("min_tokens", 0, 0, "fewest tokens in an answer"),
    ParameterSpec("ignore_eos", bool, False, None, None, "go on when the model would end its answer"),
    ParameterSpec("deterministic", bool, False, None, None, "the same seed gives the same bits in any company; slower"),
    _int("num_ctx", 0, 0, "context length in tokens; 0: chosen when the model is loaded"),
    _int("num_keep", 4, -1, "prompt tokens kept when an answer outgrows the context; -1: all"),
    _int("num_batch", 512, 1, "most prompt tokens computed in one step"),
    _int("num_thread", 0, 0, "processor threads; 0: measured and adapted"),
    _int("num_gpu", -1, -1, "layers put on the GPU; -1: as many as fit"),
    _int("main_gpu", None, 0, "the GPU that holds small tensors, if there are several"),
    ParameterSpec("use_mmap", bool, None, None, None, "map the model file into memory instead of reading it"),
    _int("draft_num_predict", 4, 0, "tokens that a DRAFT model proposes at a time"),
    *map(_deprecated, ("penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock")),
    *map(_deprecated, ("tfs_z", "num_gqa", "numa", "embedding_only")),
)

PARAMETERS: Mapping[str, ParameterSpec] = MappingProxyType({spec.name: spec for spec in _TABLE})

# What other programs call the same thing.
_ALIASES = {
    "context_length": "num_ctx",
    "ctx_size": "num_ctx",
    "gpu_layers": "num_gpu",
    "max_length": "num_predict",
    "max_new_tokens": "num_predict",
    "max_tokens": "num_predict",
    "n_batch": "num_batch",
    "n_ctx": "num_ctx",
    "n_gpu_layers": "num_gpu",
    "n_keep": "num_keep",
    "n_predict": "num_predict",
    "n_threads": "num_thread",
    "repetition_penalty": "repeat_penalty",
    "stop_sequence": "stop",
    "stop_sequences": "stop",
    "temp": "temperature",
    "threads": "num_thread",
    "typical": "typical_p",
}


def check_value(name: str, value: object) -> Scalar | list[str]:
    """`value` as parameter `name` takes it; a str is read as typed text, anything else must have the right type (a
    JSON number will do for int when it is whole). `stop` takes one text or a list. Raises `ParameterError`."""
    spec = find(name)
    if spec.deprecated:
        return value if isinstance(value, Scalar) else str(value)
    if spec.type is str:
        return _check_stops(name, value)
    number = _READ[spec.type](value)
    if number is None or not _in_range(spec, number):
        message = f"{name} takes {_wanted(spec, number)}, not {_shown(value)}"
        raise ParameterError(message, _hint(spec, value, number))
    return number


def find(name: str) -> ParameterSpec:
    """The parameter of that name; `ParameterError` proposes the nearest one."""
    if name in PARAMETERS:
        return PARAMETERS[name]
    plain = name.lower().replace("-", "_")
    current = [spec.name for spec in _TABLE if not spec.deprecated]
    meant = _ALIASES.get(plain) or nearest(plain, current)
    hint = f"did you mean {meant}?" if meant else "`modelctl help parameters` lists them all"
    raise ParameterError(f"unknown parameter {quoted(name)}", hint)


def table() -> list[Row]:
    """What `modelctl help parameters` prints; deprecated parameters are left out."""
    return [
        Row(spec.name, spec.type.__name__, _default(spec), _range(spec), spec.help)
        for spec in _TABLE
        if not spec.deprecated
    ]


def deprecated() -> list[str]:
    """The names that are accepted and ignored."""
    return [spec.name for spec in _TABLE if spec.deprecated]


def _default(spec: ParameterSpec) -> str:
    if spec.default is None:
        return "none" if spec.type is str else "auto"
    return f"{spec.default:g}" if spec.type is float else str(spec.default).lower()


def _range(spec: ParameterSpec) -> str:
    if spec.type is bool:
        return "true or false"
    if spec.low is None or spec.high is None:
        return "any text"
    return f"{spec.low:g} or more" if spec.high == MAX_INT else f"{spec.low:.12g} to {spec.high:.12g}"


_WORDS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
_NEARLY = {"yes": "write true", "on": "write true", "no": "write false", "off": "write false"}


def _read_int(value: object) -> int | None:
    if isinstance(value, str):
        return read_int(value.strip())
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_float(value: object) -> float | None:
    if isinstance(value, str):
        return read_float(value.strip())
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT
    return float(value) if number else None  # type: ignore[arg-type]  # a number: just checked


def _read_bool(value: object) -> bool | None:
    word = value.strip().lower() if isinstance(value, str) else ""
    return value if isinstance(value, bool) else _WORDS.get(word)


_READ: Mapping[type[Scalar], Callable[[object], Scalar | None]] = {int: _read_int, float: _read_float, bool: _read_bool}


def _check_stops(name: str, value: object) -> str | list[str]:
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ParameterError(f"{name} takes a text or a list of texts, not {_shown(text)}")
        if not text:
            raise ParameterError(f"{name} must not be empty: it would end every answer at once")
    return value if isinstance(value, str) else [str(text) for text in texts]


def _in_range(spec: ParameterSpec, value: Scalar) -> bool:
    return isinstance(value, str) or spec.low is None or spec.high is None or spec.low <= value <= spec.high


def _wanted(spec: ParameterSpec, number: Scalar | None) -> str:
    if spec.type is bool:
        return "true or false"
    kind = "a whole number" if spec.type is int else "a number"
    if spec.high != MAX_INT:
        return f"{kind} from {_range(spec)}"
    large = isinstance(number, int) and number > MAX_INT
    return f"{kind} of at most {MAX_INT}" if large else f"{kind} of {_range(spec)}"


def _hint(spec: ParameterSpec, value: object, number: Scalar | None) -> str | None:
    if isinstance(number, int | float):
        if spec.high == 1 and 5 <= number <= 100:
            return f"it is a share, not a percentage: write {number / 100:g} for {number:g} %"
        return "1 turns it off" if spec.name == "repeat_penalty" else None
    if not isinstance(value, str):
        return None
    if spec.type is bool:
        return COMMENT_HINT if " #" in value else _NEARLY.get(value.strip().lower())
    return number_hint(value, whole=spec.type is int)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return clipped(value, 60) if read_float(value) is not None else quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**20:  # str() of thousands of digits raises
        return "a number of more than 20 digits"
    return str(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
