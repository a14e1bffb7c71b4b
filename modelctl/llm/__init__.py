"""Offline use from Python, after vLLM's `LLM`: a base and its adapters in this process, without a daemon."""

from __future__ import annotations

from modelctl.llm.offline import LLM
from modelctl.llm.outputs import CompletionOutput, Logprob, RequestOutput
from modelctl.llm.params import SamplingParams

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput", "SamplingParams"]
