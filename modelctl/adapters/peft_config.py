"""adapter_config.json: what PEFT trained, as far as a plain LoRA can say it.

llama.cpp computes W x + scale * (alpha / rank) * B(A x), and nothing else. Whatever PEFT offers beyond that is
refused here by name, since an adapter applied without it would answer, wrongly and without a word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelctl.adapters.errors import InvalidPeft

CONFIG = "adapter_config.json"
MAX_CONFIG = 4 << 20  # bytes
MAX_RANK = 1 << 16
MAX_ALPHA = 1e6

# Options that change what is computed, with what to do about each. Falsy values are the option switched off.
UNSUPPORTED: dict[str, tuple[str, str]] = {
    "use_dora": ("DoRA (use_dora)", "merge it into the base, or train with use_dora=False"),
    "modules_to_save": ("fully trained modules (modules_to_save)", "merge it into the base, or train without them"),
    "lora_bias": ("bias in the LoRA matrices (lora_bias)", "train with lora_bias=False"),
    "alora_invocation_tokens": ("an activated LoRA (alora_invocation_tokens)", "train a plain LoRA"),
    "trainable_token_indices": ("trained tokens (trainable_token_indices)", "merge it into the base"),
    "target_parameters": ("LoRA on bare parameters (target_parameters)", "merge it into the base"),
    "layer_replication": ("replicated layers (layer_replication)", "merge it into the base"),
    "arrow_config": ("Arrow routing (arrow_config)", "give the adapters it routes between one by one"),
    "kasa_config": ("KaSA (kasa_config)", "merge it into the base"),
    "monteclora_config": ("MonteCLoRA (monteclora_config)", "merge it into the base"),
    "use_qalora": ("QALoRA (use_qalora)", "merge it into the base"),
    "use_bdlora": ("block-diagonal LoRA (use_bdlora)", "merge it into the base"),
}
HARMLESS = ("use_rslora",)  # any other use_..., known or not, is taken for a change of what is computed
# Initialisations that move the base's own weights: such an adapter is right only on the moved base.
MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The LoRA's arithmetic. Patterns are regular expressions on module names, as PEFT matches them."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_matching(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """What PEFT multiplies B(A x) by."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that matches the end of a module's name, whole components; "" when none does."""
    for pattern in patterns:
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return pattern
    return ""


def read_config(folder: Path) -> PeftConfig:
    """The config of a PEFT folder. Raises `InvalidPeft` that names the file and what is wrong or unsupported."""
    path = folder / CONFIG
    config = _load(path)
    _refuse_unsupported(path, config)
    return PeftConfig(
        rank=_rank(path, "r", config.get("r")),
        alpha=_alpha(path, "lora_alpha", config.get("lora_alpha")),
        rslora=bool(config.get("use_rslora")),
        rank_pattern={k: _rank(path, f"rank_pattern[{k!r}]", v) for k, v in _pattern(path, config, "rank_pattern")},
        alpha_pattern={k: _alpha(path, f"alpha_pattern[{k!r}]", v) for k, v in _pattern(path, config, "alpha_pattern")},
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise InvalidPeft(path, f"larger than {MAX_CONFIG >> 20} MiB; expected a PEFT adapter_config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidPeft(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidPeft(path, f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidPeft(path, f"not valid JSON: {error}") from None
    except (RecursionError, ValueError):
        raise InvalidPeft(path, "not valid JSON: nested too deeply, or a number too long") from None
    if not isinstance(config, dict):
        raise InvalidPeft(path, f"expected a JSON object, found {type(config).__name__}")
    return config


def _refuse_unsupported(path: Path, config: dict[str, Any]) -> None:
    if "lora_parameters" in config or "fine_tune_type" in config:
        raise InvalidPeft(path, "an MLX adapter, which is unsupported", hint="convert it to PEFT or GGUF first")
    if config.get("peft_type") != "LORA":
        raise InvalidPeft(path, f"peft_type is {config.get('peft_type')!r}; expected 'LORA'")
    for option, value in config.items():
        if value and (option in UNSUPPORTED or (option.startswith("use_") and option not in HARMLESS)):
            what, remedy = UNSUPPORTED.get(option, (option, "merge it into the base"))
            raise InvalidPeft(path, f"uses {what}, which is unsupported", hint=remedy)
    if config.get("bias", "none") not in ("none", None):
        raise InvalidPeft(
            path,
            f"trained biases (bias={config['bias']!r}), which are unsupported",
            hint="train with bias='none', or merge it into the base",
        )
    _refuse_moved_base(path, config.get("init_lora_weights"))


def _refuse_moved_base(path: Path, init: object) -> None:
    if isinstance(init, str) and init.lower().startswith(MOVED_BASE):
        raise InvalidPeft(
            path,
            f"init_lora_weights={init!r} changed the base's own weights, which a LoRA file cannot carry",
            hint="save it again with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
        )


def _rank(path: Path, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise InvalidPeft(path, f"{name} must be a whole number from 1 to {MAX_RANK}, found {value!r}")
    return value


def _alpha(path: Path, name: str, value: object) -> float:
    """Not 0: PEFT then adds nothing, but llama.cpp reads alpha 0 as "no alpha" and applies the adapter in full."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < abs(value) <= MAX_ALPHA:
        return float(value)
    raise InvalidPeft(path, f"{name} must be a number other than 0, of at most {MAX_ALPHA:g}; found {value!r}")


def _pattern(path: Path, config: dict[str, Any], name: str) -> list[tuple[str, object]]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict) or len(patterns) > 10_000:
        raise InvalidPeft(path, f"{name} must be an object of module names")
    for pattern in patterns:
        _check_pattern(path, name, pattern)
    return list(patterns.items())


def _check_pattern(path: Path, name: str, pattern: str) -> None:
    """Patterns are regular expressions out of a file: none whose matching could take exponential time."""
    repeats = len(re.findall(r"[*+?{]", pattern))
    if len(pattern) > 500 or repeats > 3 or re.search(r"\)[*+?{]", pattern):
        raise InvalidPeft(path, f"the pattern {pattern!r} in {name} is too complex", hint="name the modules instead")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InvalidPeft(path, f"{pattern!r} in {name} is no valid pattern: {error}") from None
