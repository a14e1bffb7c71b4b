"""Runs every hostile template, with little memory, and prints what came of it: python hostile_run.py PWN SECONDS."""

from __future__ import annotations

import json
import resource
import sys

import hostile

from modelctl.errors import BadRequest
from modelctl.template import Conversation, Message, load, time_limit

MEMORY = 1 << 30  # bytes of address space


def outcome(go: str | None, jinja: str | None, seconds: float) -> tuple[str, str]:
    try:
        with time_limit(seconds):
            prompt = load(go, gguf_template=jinja).render(Conversation([Message("user", "hi")]))
    except BadRequest as error:
        return type(error).__name__, error.message
    return "rendered", prompt[:100]


def main() -> None:
    pwn, seconds = sys.argv[1], float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = {
        f"jinja {name}": outcome(None, text.replace("{pwn}", pwn), seconds) for name, text in hostile.JINJA.items()
    }
    found |= {f"go {name}": outcome(text, None, seconds) for name, text in hostile.GO.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
