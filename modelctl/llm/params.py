"""How to choose tokens, for offline use: vLLM's names and defaults, checked when they are written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import msgspec

from modelctl import parser
from modelctl.errors import BadRequest
from modelctl.runner.frames import Sampling

MAX_LOGPROBS = 20
PARAMETER_OF = {  # vLLM's name -> the PARAMETER that says the same
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repeat_penalty",
    "max_tokens": "num_predict",
    "min_tokens": "min_tokens",
    "stop": "stop",
    "seed": "seed",
    "ignore_eos": "ignore_eos",
    "deterministic": "deterministic",
}
_EXTRA = (set(Sampling.__struct_fields__) & parser.PARAMETERS.keys()) - set(PARAMETER_OF.values())


@dataclass(frozen=True)
class SamplingParams:
    """Raises `BadRequest` for a value out of range."""

    _: KW_ONLY
    n: int = 1  # answers to each prompt; with a `seed`, answer i has the seed `seed + i`
    temperature: float = 1.0  # 0: always the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: all
    min_p: float = 0.0
    presence_penalty: float = 0.0  # the penalties look at the prompt too, as llama.cpp's do
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16  # None: until the context is full
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None  # None: the model's own; []: none
    seed: int | None = None  # None: another one each time
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] | None = None  # by token id
    logprobs: int | None = None  # of each token; 0: its own, k: those of the k likeliest too
    json_schema: Mapping[str, Any] | str | None = None  # the text follows this schema; {}: any JSON object
    grammar: str | None = None  # the text follows this GBNF grammar
    deterministic: bool = False  # the same bits alone or in any crowd, at the price of speed
    extra_args: Mapping[str, Any] = field(default_factory=dict)  # PARAMETERs that vLLM has no name for

    def __post_init__(self) -> None:
        check_whole("n", self.n, 1)
        check_whole("max_tokens", self.max_tokens, 1)
        check_whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        for name in self.extra_args.keys() - _EXTRA:
            hint = f"it takes {', '.join(sorted(_EXTRA))}; the others are arguments of SamplingParams"
            raise BadRequest(f"extra_args takes no {name!r}", hint=hint)
        if self.sampling().temperature == 0 and self.n > 1:
            raise BadRequest("at temperature 0 all n answers would be the same", hint="n=1, or a higher temperature")
        if self.json_schema is not None and self.grammar:
            raise BadRequest("json_schema and grammar exclude each other", hint="give one of them")

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> SamplingParams:
        """vLLM's defaults under a Modelfile's PARAMETERs; those that mean no sampling are left out."""
        given = {name: parameters[theirs] for name, theirs in PARAMETER_OF.items() if theirs in parameters}
        if given.get("max_tokens", 1) < 0:
            given["max_tokens"] = None
        if given.get("seed") == -1:
            given["seed"] = None
        return cls(**given, extra_args={name: value for name, value in parameters.items() if name in _EXTRA})

    def sampling(self, at: int = 0, **defaults: Any) -> Sampling:
        """For the engine, answer `at` of n. `defaults`: the engine's settings, for what is not given here."""
        given = {name: value for name in PARAMETER_OF if (value := getattr(self, name)) is not None}
        checked = {PARAMETER_OF[name]: check(name, PARAMETER_OF[name], value) for name, value in given.items()}
        if checked.get("seed", -1) >= 0:
            checked["seed"] = (checked["seed"] + at) % 2**32
        checked |= {name: check(name, name, value) for name, value in self.extra_args.items()}
        return Sampling(
            **{"num_predict": -1, **defaults, **checked},
            logit_bias=_biases(self.logit_bias or {}),
            logprobs=-1 if self.logprobs is None else self.logprobs,
            json_schema=_schema(self.json_schema),
            grammar=self.grammar or "",
        )


def check(name: str, parameter: str, value: object) -> Any:
    """`value` as that PARAMETER takes it; errors call it `name`. Raises `BadRequest`."""
    try:
        checked = parser.check_value(parameter, list(value) if isinstance(value, tuple) else value)
    except parser.ParameterError as error:
        raise BadRequest(error.message.replace(parameter, name, 1), hint=error.hint) from None
    return [checked] if parameter == "stop" and isinstance(checked, str) else checked


def check_whole(name: str, value: object, low: int, high: int = 2**31 - 1) -> None:
    """None will do. Raises `BadRequest`."""
    if value is not None and not (type(value) is int and low <= value <= high):
        limits = f"from {low} to {high}" if high < 1000 else f"of {low} or more"
        raise BadRequest(f"{name} takes a whole number {limits}, not {value!r}")


def _biases(biases: Mapping[int, float]) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in biases.items()}
    except (TypeError, ValueError, AttributeError):
        raise BadRequest("logit_bias takes numbers by token id", hint="for example {42: -100.0}") from None


def _schema(schema: Mapping[str, Any] | str | None) -> str:
    """The schema's text; "" for none."""
    try:
        text = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
        known = msgspec.json.decode(text) if schema is not None else {}
    except (TypeError, ValueError) as error:
        raise BadRequest(f"json_schema cannot be read: {error}") from None
    if not isinstance(known, dict):
        raise BadRequest("json_schema takes a JSON schema, as a dict or as JSON text")
    return "" if schema is None else text
