"""One stream, a long prompt, eight streams under one, four and eight mixes: against llama-server.

LLAMA_SERVER=... python -m benchmarks.throughput [--rounds 5] [--base model.gguf]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks.common import QUESTION, Server, both, compare, crowd, models


def one_stream(server: Server, i: int) -> dict[str, float]:
    answer = asyncio.run(server.ask(f"{i}: {QUESTION}", 96))
    return {"tokens/s": (answer.n_tokens - 1) / (answer.seconds - answer.first), "first token, s": answer.first}


def long_prompt(server: Server, i: int) -> dict[str, float]:
    prompt = f"{i} " + "The lighthouse keeper walked down to the shore and looked out over the sea. " * 125
    answer = asyncio.run(server.ask(prompt, 1))
    return {"prompt tokens/s": answer.prompt_tokens / answer.seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", type=Path, help="another base than SmolLM2-135M in Q4_0")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    with both(models(base=arguments.base), n_ctx=2560) as (ours, peer):
        print("one stream, base", flush=True)
        compare(ours, peer, one_stream, rounds)
        print("one prompt of 2,000 tokens", flush=True)
        compare(ours, peer, long_prompt, rounds)
        print("eight streams, one mix", flush=True)
        compare(ours, peer, lambda s, i: crowd(s, [{0: 1.0}] * 8, 96, i), rounds)
        print("eight streams, four mixes", flush=True)
        compare(ours, peer, lambda s, i: crowd(s, [{k % 4: 1.0} for k in range(8)], 96, 100 + i), rounds)
        print("eight streams, eight mixes", flush=True)
        compare(ours, peer, lambda s, i: crowd(s, [{k: 1.0} for k in range(8)], 96, 200 + i), rounds)


if __name__ == "__main__":
    main()
