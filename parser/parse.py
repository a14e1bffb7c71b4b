"""text -> `Modelfile`, or `ModelfileError` with everything that is wrong in it."""

from __future__ import annotations

import posixpath
from collections.abc import Container, Iterator
from itertools import chain, count, islice

from .names import valid_name
from .nodes import Adapter, Draft, From, Instruction, License, Message, Modelfile, Node, System, Template
from .rules import instruction
from .source import (
    BLANKS,
    Mistake,
    ModelfileError,
    Problem,
    Source,
    line_end,
    line_number,
    quoted,
    skip_blanks,
    skip_gap,
)
from .unknown import NoInstruction, first_word, meant
from .values import next_instruction

MAX_PROBLEMS = 100
GENERIC = ("adapter", "adapter_model", "adapters", "lora", "model")  # file names that say nothing about an adapter


def parse(text: str, filename: str = "Modelfile") -> Modelfile:
    """The Modelfile that `text` spells. Raises `ModelfileError` with all problems found, the first 100 of them."""
    source = Source(text, filename)
    if (nul := text.find("\0")) >= 0:
        raise ModelfileError([source.problem(nul, nul + 1, "a NUL character", "a Modelfile is plain text")])
    found, problems = _instructions(source)
    problems.sort(key=lambda problem: (problem.line, problem.column))
    problems += _more(source, problems) or _no_from(source, found, problems)
    if problems:
        raise ModelfileError(problems)
    return Modelfile(tuple(found), filename, text)


def _instructions(source: Source) -> tuple[list[Instruction], list[Problem]]:
    found: list[Instruction] = []
    problems: list[Problem] = []
    pos = skip_gap(source.text, 0)
    while pos < len(source.text) and len(problems) < MAX_PROBLEMS:
        try:
            node = instruction(source, pos)
        except Mistake as mistake:
            mistake = _spilt(source, pos, found, mistake)
            problems.append(source.problem(mistake.start, mistake.end, mistake.message, mistake.hint))
            resume = line_end(source.text, pos) if mistake.resume is None else mistake.resume
        else:
            found.append(node)
            resume = node.span.last if node.span else pos
        pos = skip_gap(source.text, resume)
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


def _more(source: Source, problems: list[Problem]) -> list[Problem]:
    if len(problems) < MAX_PROBLEMS:
        return []
    return [Problem(f"these are the first {MAX_PROBLEMS} problems; there may be more", None, source.filename)]


def _no_from(source: Source, found: list[Instruction], problems: list[Problem]) -> list[Problem]:
    """Kept quiet when a FROM line was reported, or one may lie behind a quote that is not closed."""
    if any(isinstance(node, From) for node in found):
        return []
    for problem in problems:
        start = skip_blanks(problem.source, 0)
        word = problem.source[start : first_word(problem.source, start)]
        if meant(word) == "FROM" or "never closed" in problem.message:
            return []
    message = "no FROM line" if source.text.strip() else "this file is empty"
    return [Problem(message, "name the base model, for example FROM ./model.gguf", source.filename)]


def _same_names(source: Source, found: list[Instruction]) -> Iterator[Problem]:
    """Adapters are chosen by name, so each needs its own."""
    adapters = [node for node in found if isinstance(node, Adapter)]
    taken = {node.effective_name for node in adapters}
    seen: dict[str, Adapter] = {}
    for node in adapters:
        name = node.effective_name
        if (first := seen.setdefault(name, node)) is not node:
            free = _free_name(node, taken)
            taken.add(free)
            message = f"the adapter in line {_line(source, first)} has the name {quoted(name)} already"
            yield _at(source, node, message, f"give this one another: AS {free}")


def _free_name(adapter: Adapter, taken: Container[str]) -> str:
    """A name from the adapter's folder, if there is one: `b/math.gguf` -> `b-math`, `b/adapter_model.bin` -> `b`."""
    name = adapter.effective_name
    folder = posixpath.basename(posixpath.dirname(adapter.path.replace("\\", "/"))).strip(".~")
    spoken = [valid_name(folder if name in GENERIC else f"{folder}-{name}")] if folder else []
    return next(free for free in chain(spoken, (f"{name}-{n}" for n in count(2))) if free not in taken)


def _draft_is_base(source: Source, found: list[Instruction]) -> Iterator[Problem]:
    bases = {posixpath.normpath(node.value) for node in found if isinstance(node, From)}
    for node in found:
        if isinstance(node, Draft) and posixpath.normpath(node.path) in bases:
            yield _at(source, node, "DRAFT names the same file as FROM", "a draft is a smaller model than its base")


def _at(source: Source, node: Node, message: str, hint: str) -> Problem:
    return Modelfile((), source.filename, source.text).problem(node, message, hint)


def _line(source: Source, node: Node) -> int:
    return line_number(source.text, node.span.first) if node.span else 0
