"""`parse(dump(x)) == x` for any x, not only for what a parser made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelctl.parser import (
    PARAMETERS,
    Adapter,
    Capability,
    Draft,
    From,
    Instruction,
    License,
    Message,
    Modelfile,
    ModelfileError,
    Parameter,
    Parser,
    Renderer,
    Requires,
    System,
    Template,
    adapter_name,
    dump,
    parse,
)
from modelctl.parser.names import reason_against

PIECES = st.sampled_from(
    ('"', '""', '"""', "\n", "\r\n", " ", "\t", "#", " # ", "*", "AS", " SCALE ", "FROM ", "0.5", "\u00a0")
)
TEXT = st.lists(PIECES | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), max_size=12).map(
    "".join
)
PATH = TEXT.filter(lambda text: text.strip() and not set("\r\n") & set(text))
WORD = st.from_regex(r"[a-z0-9._-]{1,12}", fullmatch=True) | st.sampled_from(
    ("as", "scale", "AS", "SCALE", "0.5", "user")
)
NAME = WORD.filter(lambda word: reason_against(word) is None)
SCALE = st.floats(-100, 100)


def _parameters() -> st.SearchStrategy[Instruction]:
    kinds: list[st.SearchStrategy[Instruction]] = []
    for name, spec in PARAMETERS.items():
        low, high = spec.low, spec.high
        values: st.SearchStrategy[int | float | bool | str] = TEXT.filter(bool)
        if spec.type is bool:
            values = st.booleans()
        elif low is not None and high is not None:
            values = st.integers(int(low), int(high)) if spec.type is int else st.floats(low, high)
        kinds.append(st.builds(Parameter, st.just(name), values))
    return st.one_of(kinds)


INSTRUCTION: st.SearchStrategy[Instruction] = st.one_of(
    st.builds(From, PATH),
    st.builds(Adapter, PATH, st.none() | NAME, st.none() | SCALE),
    _parameters(),
    st.builds(Template, TEXT),
    st.builds(System, TEXT),
    st.builds(License, TEXT),
    st.builds(Message, st.sampled_from(("system", "user", "assistant")), TEXT),
    st.builds(Requires, st.just("0.14.0-rc1")),
    st.builds(Renderer, WORD),
    st.builds(Parser, WORD),
    st.builds(Capability, WORD),
)


def _sound(nodes: list[Instruction]) -> bool:
    """Adapters have names of their own."""
    names = [node.effective_name for node in nodes if isinstance(node, Adapter)]
    return len(names) == len(set(names))


@given(st.lists(INSTRUCTION, max_size=6).filter(_sound).map(lambda nodes: Modelfile((From("m"), *nodes))))
def test_what_dump_writes_reads_back_as_the_same(modelfile: Modelfile) -> None:
    try:
        text = dump(modelfile)
    except ModelfileError as error:
        assert "cannot be written in a Modelfile" in str(error)
        assert '"' in repr(modelfile)  # nothing but quotes can be in the way
        return
    assert parse(text) == modelfile
    assert dump(parse(text)) == text


@given(PATH.filter(lambda path: '"' not in path))
def test_a_path_without_quotes_can_always_be_written(path: str) -> None:
    for node in (From(path), Adapter(path), Draft(path)):
        modelfile = Modelfile((From("m"), node))
        assert parse(dump(modelfile)) == modelfile


@given(TEXT.filter(lambda text: '"' not in text))
def test_a_text_without_quotes_can_always_be_written(text: str) -> None:
    modelfile = Modelfile((From("m"), System(text), Message("user", text)))
    assert parse(dump(modelfile)) == modelfile


@given(st.text())
def test_any_path_gives_a_valid_adapter_name(path: str) -> None:
    assert reason_against(adapter_name(path)) is None
