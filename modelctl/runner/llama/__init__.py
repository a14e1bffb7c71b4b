"""llama.cpp, as the rest of the runner sees it: the only package that imports llama_cpp.

Every native handle has one owner and a `close()`. Threads: `Base.tokenize` and `Base.piece` only read and may be called
from any thread; everything else belongs to the thread that decodes (changing the adapters from another one during a
decode ends in SIGBUS).
"""

from modelctl.runner.llama.backend import can_offload, gomp_parallel, op_number, start_backend
from modelctl.runner.llama.base import Base
from modelctl.runner.llama.context import SEQ_MAX, Context, EvalCallback
from modelctl.runner.llama.sampler import Sampler, schema_to_gbnf

__all__ = [
    "SEQ_MAX",
    "Base",
    "Context",
    "EvalCallback",
    "Sampler",
    "can_offload",
    "gomp_parallel",
    "op_number",
    "schema_to_gbnf",
    "start_backend",
]
