"""llama.cpp's samplers: those of one sequence, in a chain."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from modelctl.errors import LoadFailed
from modelctl.runner.llama.base import Base
from modelctl.runner.llama.context import Context


def schema_to_gbnf(schema: str) -> str:
    """A JSON schema's text as a GBNF grammar. Leaves by all kinds of exceptions when the schema is odd."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    return str(json_schema_to_gbnf(schema))


class Sampler:
    """A chain of llama.cpp's samplers, with the state (penalties, grammar, random numbers) of one sequence."""

    def __init__(self, base: Base, chain: Iterable[tuple[Any, ...]], grammar: str = "") -> None:
        """`chain`: (name, arguments...) pairs, as `sampling.chain` makes them. `grammar`: GBNF that binds the choice.
        Raises `LoadFailed` where llama.cpp refuses one."""
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._grammar: Any = None
        self._chain = lib.llama_sampler_chain_init(params)
        for name, *arguments in chain:
            lib.llama_sampler_chain_add(self._chain, self._made(name, _SAMPLERS[name](base, *arguments)))
        if grammar:
            text = grammar.encode()
            self._grammar = self._made("grammar", lib.llama_sampler_init_grammar(base.vocab, text, b"root"))

    def _made(self, name: str, sampler: Any) -> Any:
        if not sampler:
            self.close()
            raise LoadFailed(f"llama.cpp refused the {name} sampler")
        return sampler

    def sample(self, context: Context, row: int, logits: npt.NDArray[np.float32]) -> int:
        """The next token from the logits of batch row `row`, accepted into the chain's state."""
        if self._grammar is None:
            return int(lib.llama_sampler_sample(self._chain, context.handle, row))
        token = self._choose(logits, bound=False)
        if not self._allows(token):  # asking the grammar about one token is cheap, about all of them is not
            token = self._choose(logits, bound=True)
        lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, logits: npt.NDArray[np.float32], *, bound: bool) -> int:
        candidates = np.empty(len(logits), _CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        array = _candidate_array(candidates)
        if bound:
            lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = ctypes.cast(array.data, ctypes.POINTER(lib.llama_token_data))[array.selected]
        return int(chosen.id)

    def _allows(self, token: int) -> bool:
        candidate = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(_candidate_array(candidate)))
        return bool(np.isfinite(candidate["logit"][0]))

    def accept(self, token: int) -> None:
        """A token of the prompt, for the penalties."""
        lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler:
                lib.llama_sampler_free(sampler)
        self._chain = self._grammar = None


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def _candidate_array(candidates: npt.NDArray[Any]) -> Any:
    data = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
    return lib.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)


def _logit_bias(base: Base, biases: dict[int, float]) -> Any:
    array = (lib.llama_logit_bias * len(biases))(*(lib.llama_logit_bias(t, b) for t, b in biases.items()))
    return lib.llama_sampler_init_logit_bias(base.n_vocab, len(biases), array)


def _dry(base: Base, multiplier: float, growth: float, allowed: int) -> Any:
    """With llama.cpp's usual sequence breakers, over the whole context."""
    breakers = (ctypes.c_char_p * 4)(b"\n", b":", b'"', b"*")
    return lib.llama_sampler_init_dry(base.vocab, multiplier, growth, allowed, base.n_ctx_train, breakers, 4)


_SAMPLERS: dict[str, Callable[..., Any]] = {
    "greedy": lambda base: lib.llama_sampler_init_greedy(),
    "dist": lambda base, seed: lib.llama_sampler_init_dist(seed),
    "temperature": lambda base, t: lib.llama_sampler_init_temp(t),
    "top_k": lambda base, k: lib.llama_sampler_init_top_k(k),
    "top_p": lambda base, p: lib.llama_sampler_init_top_p(p, 1),
    "min_p": lambda base, p: lib.llama_sampler_init_min_p(p, 1),
    "typical_p": lambda base, p: lib.llama_sampler_init_typical(p, 1),
    "mirostat": lambda base, seed, tau, eta: lib.llama_sampler_init_mirostat(base.n_vocab, seed, tau, eta, 100),
    "mirostat_v2": lambda base, seed, tau, eta: lib.llama_sampler_init_mirostat_v2(seed, tau, eta),
    "penalties": lambda base, last_n, repeat, frequency, presence: lib.llama_sampler_init_penalties(
        base.n_vocab, last_n if last_n >= 0 else base.n_ctx_train, repeat, frequency, presence
    ),
    "dry": _dry,
    "xtc": lambda base, probability, threshold, seed: lib.llama_sampler_init_xtc(probability, threshold, 1, seed),
    "logit_bias": _logit_bias,
}
