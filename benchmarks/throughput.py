"""One stream, a long prompt, eight streams under one, four and eight mixes: against llama-server, and several mixes
against one.

LLAMA_SERVER=... python -m benchmarks.throughput [--rounds 5] [--base model.gguf]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks.common import QUESTION, Case, Figures, Server, both, compare, crowd, median_ratio, models


def one_stream(server: Server, i: int) -> Figures:
    answer = asyncio.run(server.ask(f"{i}: {QUESTION}", 96))
    return {"tokens/s": (answer.n_tokens - 1) / (answer.seconds - answer.first), "first token, s": answer.first}


def long_prompt(server: Server, i: int) -> Figures:
    prompt = f"{i} " + "The lighthouse keeper walked down to the shore and looked out over the sea. " * 125
    answer = asyncio.run(server.ask(prompt, 1))
    return {"prompt tokens/s": answer.prompt_tokens / answer.seconds}


def streams(n_mixes: int) -> Case:
    """Eight, which share so many mixes of one adapter each."""
    return lambda server, i: crowd(server, [{k % n_mixes: 1.0} for k in range(8)], 96, 100 * n_mixes + i)


CROWDS = {f"eight streams, {'one mix' if n == 1 else f'{n} mixes'}": streams(n) for n in (1, 4, 8)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", type=Path, help="another base than SmolLM2-135M in Q4_0")
    arguments = parser.parse_args()
    cases: dict[str, Case] = {"one stream, base": one_stream, "one prompt of 2,000 tokens": long_prompt, **CROWDS}
    with both(models(base=arguments.base), n_ctx=2560) as (ours, peer):
        results = compare(ours, peer, cases, arguments.rounds)
    one, *others = CROWDS
    for case in others:
        print(f"{case}: {median_ratio(results[case], results[one], 'tokens/s'):.2f} of what {ours.name} does under one")


if __name__ == "__main__":
    main()
