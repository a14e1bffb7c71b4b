"""text -> `Modelfile`, or `ModelfileError` with everything that is wrong in it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container, Iterator
from itertools import count

from .names import nearest, valid_name
from .nodes import Adapter, Draft, From, Instruction, Modelfile, Node
from .rules import instruction
from .source import BLANKS, Mistake, ModelfileError, Problem, Source, line_end, line_number, quoted
from .values import NAMES

MAX_PROBLEMS = 100
_GAP = re.compile(rf"(?:[{BLANKS}\r\n]++|#[^\r\n]*+)*+")  # blank lines and comments


def parse(text: str, filename: str = "Modelfile") -> Modelfile:
    """The Modelfile that `text` spells. Raises `ModelfileError` with all problems found (the first 100)."""
    source = Source(text, filename)
    if (nul := text.find("\0")) >= 0:
        raise ModelfileError([source.problem(nul, nul + 1, "a NUL character", "a Modelfile is plain text")])
    found, problems = _instructions(source)
    problems += [*_no_from(source, found, problems), *_same_names(source, found), *_draft_is_base(source, found)]
    if problems:
        raise ModelfileError(sorted(problems[:MAX_PROBLEMS], key=lambda problem: (problem.line, problem.column)))
    return Modelfile(tuple(found), filename, text)


def _instructions(source: Source) -> tuple[list[Instruction], list[Problem]]:
    found: list[Instruction] = []
    problems: list[Problem] = []
    pos = _gap_end(source.text, 0)
    while pos < len(source.text) and len(problems) < MAX_PROBLEMS:
        try:
            node = instruction(source, pos)
        except Mistake as mistake:
            problems.append(source.problem(mistake.start, mistake.end, mistake.message, mistake.hint))
            resume = line_end(source.text, pos) if mistake.resume is None else mistake.resume
        else:
            found.append(node)
            resume = line_end(source.text, node.span.last if node.span else pos)
        pos = _gap_end(source.text, resume)
    return found, problems


def _gap_end(text: str, pos: int) -> int:
    gap = _GAP.match(text, pos)
    return gap.end() if gap else pos


def _no_from(source: Source, found: list[Instruction], problems: list[Problem]) -> Iterator[Problem]:
    """Kept quiet when a FROM line was reported, or one may lie behind a quote that is not closed."""
    if any(isinstance(node, From) for node in found):
        return
    reported = [problem.source.split(None, 1)[0].upper() for problem in problems if problem.source.strip(BLANKS)]
    if any(nearest(word, NAMES) == "FROM" for word in reported) or any("never closed" in p.message for p in problems):
        return
    if len(problems) < MAX_PROBLEMS:
        message = "no FROM line" if source.text.strip() else "this file is empty"
        yield Problem(message, "name the base model, for example FROM ./model.gguf", source.filename)


def _same_names(source: Source, found: list[Instruction]) -> Iterator[Problem]:
    """Adapters are chosen by name, so each needs its own."""
    seen: dict[str, Adapter] = {}
    for node in found:
        if isinstance(node, Adapter) and seen.setdefault(node.effective_name, node) is not node:
            first = seen[node.effective_name]
            message = f"the adapter of line {_line(source, first)} is called {quoted(node.effective_name)} too"
            yield _at(source, node, message, f"give this one a name: AS {_free_name(node, seen)}")


def _free_name(adapter: Adapter, taken: Container[str]) -> str:
    """A name from the adapter's folder if that is free: `b/math.gguf` -> `b-math`."""
    name = adapter.effective_name
    folder = posixpath.basename(posixpath.dirname(adapter.path.replace("\\", "/")))
    if folder.strip(".~") and (proposal := valid_name(f"{folder}-{name}")) not in taken:
        return proposal
    return next(proposal for n in count(2) if (proposal := f"{name}-{n}") not in taken)


def _draft_is_base(source: Source, found: list[Instruction]) -> Iterator[Problem]:
    bases = {posixpath.normpath(node.value) for node in found if isinstance(node, From)}
    for node in found:
        if isinstance(node, Draft) and posixpath.normpath(node.path) in bases:
            yield _at(source, node, "DRAFT names the same file as FROM", "a draft is a smaller model than its base")


def _at(source: Source, node: Node, message: str, hint: str) -> Problem:
    return Modelfile((), source.filename, source.text).problem(node, message, hint)


def _line(source: Source, node: Node) -> int:
    return line_number(source.text, node.span.first) if node.span else 0
