"""Ten turns of chat: how many tokens are computed again, under one mix, and after another mix was used in between.

python -m benchmarks.chat
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.common import Models, Ours, models

TURNS = 10


def post(server: Ours, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/api/chat", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def turn(server: Ours, messages: list[dict[str, str]], lora: dict[str, float]) -> tuple[int, int, int]:
    """Asks, appends the answer; returns (prompt tokens, of them taken from the cache, tokens of the answer)."""
    options = {"temperature": 0, "num_predict": 40}
    reply = post(server, {"model": "bench", "messages": messages, "stream": False, "lora": lora, "options": options})
    messages.append(reply["message"])
    return reply["prompt_eval_count"], reply.get("prompt_cached_count", 0), reply["eval_count"]


def main() -> None:
    base = models(2)
    with tempfile.TemporaryDirectory() as folder:
        server = Ours(Models(base.base, base.adapters), Path(folder), n_ctx=4096)
        try:
            asyncio.run(server.ask("Hello", 4))
            messages: list[dict[str, str]] = []
            before = evaluated = new = 0
            for i in range(TURNS):
                messages.append({"role": "user", "content": f"Question {i}: what else is there to say about the sea?"})
                total, cached, n_answer = turn(server, messages, {"a0": 1.0})
                if i:
                    new += total - before
                    evaluated += total - cached
                before = total + n_answer
            ratio = evaluated / new
            print(f"turns 2-{TURNS}: {evaluated} tokens computed, {new} new: ratio {ratio:.2f} (goal: at most 1.05)")
            turn(server, [*messages, {"role": "user", "content": "Another voice, please."}], {"a1": 1.0})
            messages.append({"role": "user", "content": "And back again?"})
            total, cached, n_answer = turn(server, messages, {"a0": 1.0})
            print(f"after another mix and back: {cached} of {total} prompt tokens from the old mix's cache")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
