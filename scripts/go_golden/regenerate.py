"""Write tests/template/goldens: every template through every conversation, by the real text/template.

python scripts/go_golden/regenerate.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import real_go

TESTS = Path(__file__).parents[2] / "tests" / "template"
sys.path.insert(0, str(TESTS))

import snippets  # noqa: E402


def expected() -> dict[str, dict[str, str]]:
    """template name -> conversation name -> prompt."""
    conversations = json.loads((TESTS / "conversations.json").read_text(encoding="utf-8"))
    templates = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TESTS.glob("gotmpl/*.gotmpl"))}
    keys = [(t, name) for t, text in templates.items() for name in conversations if name != "fim" or ".Suffix" in text]
    cases: list[dict[str, Any]] = [{"template": templates[t], "conversation": conversations[c]} for t, c in keys]
    prompts: dict[str, dict[str, str]] = {template: {} for template in templates}
    for (template, name), answer in zip(keys, real_go.render(cases), strict=True):
        if "error" in answer:
            raise SystemExit(f"{template}, {name}: {answer['error']}")
        prompts[template][name] = answer["output"]
    return prompts


def expected_snippets() -> dict[str, str | None]:
    """snippet -> its output; None for those that Go refuses to parse or to run."""
    answers = real_go.render([{"template": text, "data": snippets.DATA} for text in snippets.SNIPPETS])
    pairs = zip(snippets.SNIPPETS, answers, strict=True)
    return {text: None if "error" in answer else answer["output"] for text, answer in pairs}


def main() -> None:
    folder = TESTS / "goldens"
    folder.mkdir(exist_ok=True)
    for template, prompts in (expected() | {"snippets": expected_snippets()}).items():
        text = json.dumps(prompts, indent=1, ensure_ascii=True)
        (folder / f"{template}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
