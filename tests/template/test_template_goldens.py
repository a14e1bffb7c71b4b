"""Prompts and small templates against the output of real text/template; where Go is installed, against Go itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import snippets

from modelctl.errors import BadRequest
from modelctl.template import Conversation, load
from modelctl.template.go.compile import Program
from modelctl.template.go.data import decoded
from modelctl.template.go.funcs import FUNCTIONS
from modelctl.template.go.parser import parse
from modelctl.template.go.values import printable

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "scripts" / "go_golden"))

import fuzz  # noqa: E402
import real_go  # noqa: E402
import regenerate  # noqa: E402

TEMPLATES = sorted(path.stem for path in HERE.glob("gotmpl/*.gotmpl"))
CONVERSATIONS = json.loads((HERE / "conversations.json").read_text(encoding="utf-8"))
needs_go = pytest.mark.skipif(not real_go.installed(), reason="Go is not installed")


def golden(name: str) -> dict[str, Any]:
    prompts: dict[str, Any] = json.loads((HERE / "goldens" / f"{name}.json").read_text(encoding="utf-8"))
    return prompts


def run(source: str, data: dict[str, Any]) -> str | None:
    """The output; None when the template is refused."""
    try:
        return printable(Program(source, parse(source, FUNCTIONS)).run(decoded(data)))
    except BadRequest:
        return None


def test_there_are_enough_templates() -> None:
    assert len(TEMPLATES) >= 20
    assert {"user", "user-assistant-user", "system-user-assistant-user", "tools"} <= set(CONVERSATIONS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_render_as_go_does(name: str) -> None:
    template = load((HERE / "gotmpl" / f"{name}.gotmpl").read_text(encoding="utf-8"), gguf_template=None)
    prompts = {
        each: template.render(msgspec.convert(conversation, Conversation))
        for each, conversation in CONVERSATIONS.items()
        if each in golden(name)
    }
    assert prompts == golden(name)


@pytest.mark.parametrize("source", snippets.SNIPPETS)
def test_snippets_render_as_go_does(source: str) -> None:
    assert run(source, snippets.DATA) == golden("snippets")[source]


@needs_go
def test_the_goldens_are_what_go_says_today() -> None:
    assert regenerate.expected() == {name: golden(name) for name in TEMPLATES}
    assert regenerate.expected_snippets() == golden("snippets")


@needs_go
def test_random_templates_render_as_go_does(tmp_path: Path) -> None:
    writer = fuzz.Writer(seed=7)
    sources = [writer.template() for _ in range(1500)]
    theirs = real_go.answers(real_go.build(tmp_path), [{"template": s, "data": fuzz.DATA} for s in sources])
    assert sum("error" not in answer for answer in theirs) > 300
    differences = [
        (source, fuzz.ours(source), real)
        for source, real in zip(sources, theirs, strict=True)
        if fuzz.differs(fuzz.ours(source), real)
    ]
    assert differences == []
