"""Ten megabytes. Were any of these quadratic, this file would not end."""

from __future__ import annotations

import pytest

from modelctl.parser import ModelfileError, dump, parse, tidy

SIZE = 10_000_000


def _filled(line: str, size: int = SIZE) -> str:
    return line * (size // len(line))


@pytest.mark.parametrize("quote", ["", '"', '"""'], ids=["bare", "quoted", "triple"])
def test_one_long_text(quote: str) -> None:
    text = _filled('{{ .Prompt }} "x" ' if not quote else "{{ .Prompt }}\n") + "end"
    file = parse(f"FROM m\nTEMPLATE {quote}{text}{quote}\n")
    assert file.template == text
    assert parse(dump(file)) == file


def test_one_text_of_quotes() -> None:
    text = _filled('"\n') + "end"
    assert parse(f'FROM m\nSYSTEM """{text}"""\n').system == text


def test_many_instructions() -> None:
    n = 30_000
    file = parse("FROM m\n" + "".join(f"ADAPTER ./{i}.gguf AS a{i} SCALE 0.5\n" for i in range(n)))
    assert len(file.adapters) == n
    assert file.adapters[-1].effective_name == f"a{n - 1}"


def test_comments_and_blank_lines_only() -> None:
    file = parse(_filled("# hello\n\n", SIZE // 5) + "FROM m" + _filled(" \n", SIZE // 5))
    assert len(file.instructions) == 1
    assert len(tidy(file)) > SIZE / 10


@pytest.mark.parametrize(
    "line", ['SYSTEM """a\n', 'SYSTEM "a\n', 'FROM x\nsystem """a\n', 'FROM x\nsystem "a\n', "FOO bar\n"]
)
def test_many_mistakes(line: str) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse(_filled(line))
    assert len(caught.value.problems) == 101
    assert len(str(caught.value)) < 50_000


def test_a_long_line_is_cut_in_the_error() -> None:
    with pytest.raises(ModelfileError) as caught:
        parse("FROM m\nPARAMETER num_ctx " + _filled("9"))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("filling", [" ", '"a', '" ', "x AS ", ".gguf  ", "# "])
def test_one_long_line(filling: str) -> None:
    for keyword in ("FROM", "ADAPTER", "SYSTEM", "MESSAGE user", "PARAMETER stop", "REQUIRES", "FOO"):
        for start in ("", '"', "x"):
            try:
                assert parse(f"FROM m\n{keyword} {start}{_filled(filling, SIZE // 50)}").sources[0].value == "m"
            except ModelfileError as error:
                assert len(str(error)) < 2000
