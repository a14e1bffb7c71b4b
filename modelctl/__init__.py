"""modelctl: one base model, many LoRA adapters, rescaled live."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelctl.llm import LLM, SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Offline use is imported when it is asked for: it loads llama.cpp, which most commands never need."""
    if name in ("LLM", "SamplingParams"):
        from modelctl import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
