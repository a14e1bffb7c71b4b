"""text -> `Modelfile`, or `ModelfileError` with everything that is wrong in it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container, Iterator
from itertools import chain, count, islice

from .names import nearest, valid_name
from .nodes import Adapter, Draft, From, Instruction, License, Message, Modelfile, Node, System, Template
from .rules import instruction
from .source import BLANKS, Mistake, ModelfileError, Problem, Source, line_end, line_number, quoted
from .unknown import NoInstruction
from .values import NAMES, next_instruction

MAX_PROBLEMS = 100
_GAP = re.compile(rf"(?:[{BLANKS}\r\n]++|#[^\r\n]*+)*+")  # blank lines and comments


def parse(text: str, filename: str = "Modelfile") -> Modelfile:
    """The Modelfile that `text` spells. Raises `ModelfileError` with all problems found, the first 100 of them."""
    source = Source(text, filename)
    if (nul := text.find("\0")) >= 0:
        raise ModelfileError([source.problem(nul, nul + 1, "a NUL character", "a Modelfile is plain text")])
    found, problems = _instructions(source)
    problems.sort(key=lambda problem: (problem.line, problem.column))
    problems += islice(_no_from(source, found, problems), 1)
    if problems:
        raise ModelfileError(problems)
    return Modelfile(tuple(found), filename, text)


def _instructions(source: Source) -> tuple[list[Instruction], list[Problem]]:
    found: list[Instruction] = []
    problems: list[Problem] = []
    pos = _gap_end(source.text, 0)
    while pos < len(source.text) and len(problems) < MAX_PROBLEMS:
        try:
            node = instruction(source, pos)
        except Mistake as mistake:
            mistake = _spilt(source, pos, found, mistake)
            problems.append(source.problem(mistake.start, mistake.end, mistake.message, mistake.hint))
            resume = line_end(source.text, pos) if mistake.resume is None else mistake.resume
        else:
            found.append(node)
            resume = line_end(source.text, node.span.last if node.span else pos)
        pos = _gap_end(source.text, resume)
    across = chain(_same_names(source, found), _draft_is_base(source, found))
    return found, problems + list(islice(across, MAX_PROBLEMS - len(problems)))


def _spilt(source: Source, pos: int, found: list[Instruction], mistake: Mistake) -> Mistake:
    """Prose below an unquoted text is the rest of that text: one mistake, however many lines follow."""
    if not isinstance(mistake, NoInstruction) or source.text[pos : mistake.end].isupper() or not found:
        return mistake
    above, span = found[-1], found[-1].span
    if not isinstance(above, Template | System | License | Message) or span is None:
        return mistake
    if source.text[span.last : pos].strip(BLANKS) not in ("\n", "\r\n", "\r"):
        return mistake
    name = type(above).__name__.upper()
    message = f"this line begins with no instruction, and the text of {name} ended with the line above"
    opening = f"MESSAGE {above.role}" if isinstance(above, Message) else name
    hint = f'for a text of several lines, begin it with {opening} """ and end it with """'
    return Mistake(mistake.start, mistake.end, message, hint, next_instruction(source.text, pos))


def _gap_end(text: str, pos: int) -> int:
    gap = _GAP.match(text, pos)
    return gap.end() if gap else pos


def _no_from(source: Source, found: list[Instruction], problems: list[Problem]) -> Iterator[Problem]:
    """Kept quiet when a FROM line was reported, one may lie behind a quote that is not closed, or more may follow."""
    if any(isinstance(node, From) for node in found) or len(problems) >= MAX_PROBLEMS:
        return
    reported = [problem.source.split(None, 1)[0].upper() for problem in problems if problem.source.strip(BLANKS)]
    if any(nearest(word, NAMES) == "FROM" for word in reported) or any("never closed" in p.message for p in problems):
        return
    message = "no FROM line" if source.text.strip() else "this file is empty"
    yield Problem(message, "name the base model, for example FROM ./model.gguf", source.filename)


def _same_names(source: Source, found: list[Instruction]) -> Iterator[Problem]:
    """Adapters are chosen by name, so each needs its own."""
    seen: dict[str, Adapter] = {}
    for node in found:
        if isinstance(node, Adapter) and seen.setdefault(node.effective_name, node) is not node:
            first = seen[node.effective_name]
            message = f"the adapter in line {_line(source, first)} has the name {quoted(node.effective_name)} already"
            yield _at(source, node, message, f"give this one another: AS {_free_name(node, seen)}")


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
