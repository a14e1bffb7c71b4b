from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.runner.text import TextStream


def run(pieces: list[bytes], stops: list[str]) -> tuple[list[str], str]:
    stream = TextStream(stops)
    parts = []
    for piece in pieces:
        parts.append(stream.feed(piece))
        if stream.stopped_by:
            break
    return [*parts, stream.finish()], stream.stopped_by


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    euro = "€".encode()
    assert run([b"a", euro[:1], euro[1:2], euro[2:], b"b"], [])[0] == ["a", "", "", "€", "b", ""]


def test_bytes_that_are_no_character_are_replaced_at_the_end() -> None:
    assert "".join(run([b"a", b"\xe2\x82"], [])[0]) == "a\ufffd"


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stop"),
    [
        ([b"hello", b" wor", b"ld"], ["wor"], "hello ", "wor"),
        ([b"<|im", b"_end", b"|>tail"], ["<|im_end|>"], "", "<|im_end|>"),
        ([b"<|im", b"_start"], ["<|im_end|>"], "<|im_start", ""),
        ([b"aab"], ["b", "aab"], "", "aab"),
        ([b"a", b"aa", b"ab"], ["aab"], "aa", "aab"),
        ([b"x\n", b"\ny"], ["\n\n"], "x", "\n\n"),
        ([b"abc"], [""], "abc", ""),
    ],
)
def test_stop_strings(pieces: list[bytes], stops: list[str], text: str, stop: str) -> None:
    parts, met = run(pieces, stops)
    assert ("".join(parts), met) == (text, stop)


@given(st.text(alphabet="ab<|é€", max_size=40), st.lists(st.text(alphabet="ab<|é€", min_size=1, max_size=4)), st.data())
def test_any_cutting_of_the_bytes_gives_the_same_text(text: str, stops: list[str], data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    found = [text.find(stop) for stop in stops if stop in text]
    emitted, stopped = run(pieces, stops)
    assert bool(stopped) == bool(found)
    if not found:
        assert "".join(emitted) == text
    else:
        assert text.startswith("".join(emitted))
        assert "".join(emitted) + stopped in text
