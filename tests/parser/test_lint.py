"""modelctl lint: what it says, and what --fix writes."""

from __future__ import annotations

import io
import stat
import sys
from pathlib import Path

import pytest

from modelctl.cli.lint import lint
from modelctl.errors import NotFound
from modelctl.parser import ModelfileError, decode, parse

UNTIDY = '\n\n# the base\n\n\n  from   m   \n\t# scales\r\n adapter ./a.gguf  scale 1\n\nSystem """one line"""\n# end'
TIDY = "# the base\n\nFROM m\n# scales\nADAPTER ./a.gguf SCALE 1.0\n\nSYSTEM one line\n# end\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "Modelfile"


def test_nothing_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("FROM m\n")
    lint(str(file))
    assert capsys.readouterr() == ("", f"{file}: no problems\n")


def test_the_default_is_the_file_here(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("FROM m\n")
    monkeypatch.chdir(file.parent)
    lint()
    assert capsys.readouterr().err == "Modelfile: no problems\n"


def test_warnings_are_no_failure(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("FROM m\nPARAMETER low_vram true\n")
    lint(str(file))
    assert capsys.readouterr().err == (
        f"warning: {file}:2:20: low_vram is deprecated and has no effect\n"
        "    2 | PARAMETER low_vram true\n"
        "      |                    ^~~~\n"
        "    hint: remove this line\n"
        f"{file}: no problems, 1 warning\n"
    )


def test_warnings_are_counted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("FROM m\nSYSTEM a\nSYSTEM b\nSYSTEM c\n")
    lint(str(file))
    assert capsys.readouterr().err.endswith(f"{file}: no problems, 2 warnings\n")


def test_problems_are_raised_and_nothing_is_written(file: Path) -> None:
    file.write_bytes(b"from m\r\nFOO\r\n")
    for fix in (False, True):
        with pytest.raises(ModelfileError, match="unknown instruction 'FOO'"):
            lint(str(file), fix)
    assert file.read_bytes() == b"from m\r\nFOO\r\n"


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        lint(str(tmp_path / "nowhere"))


def test_fix_keeps_comments(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(UNTIDY)
    lint(str(file), fix=True)
    assert file.read_text() == TIDY
    assert capsys.readouterr().err == f"{file}: rewritten\n"
    lint(str(file), fix=True)
    assert capsys.readouterr().err == f"{file}: in canonical form already\n"
    assert file.read_text() == TIDY


def test_fix_writes_utf8_with_plain_line_ends(file: Path) -> None:
    file.write_bytes('\ufeffFROM m\r\nSYSTEM """grüß\r\ndich"""\r\n'.encode("utf-16-le"))
    lint(str(file), fix=True)
    assert file.read_bytes() == 'FROM m\nSYSTEM """grüß\ndich"""\n'.encode()


def test_fix_means_the_same(file: Path) -> None:
    for path in sorted((Path(__file__).parent.parent / "modelfiles" / "valid").glob("*.modelfile")):
        data = path.read_bytes()
        file.write_bytes(data)
        lint(str(file), fix=True)
        assert parse(file.read_bytes().decode()) == parse(decode(data).replace("\r\n", "\n")), path.name


def test_fix_keeps_mode_and_link_and_leaves_no_litter(file: Path, tmp_path: Path) -> None:
    file.write_text("from m")
    file.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(file)
    lint(str(link), fix=True)
    assert link.is_symlink()
    assert file.read_text() == "FROM m\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "link"]


def test_fix_that_cannot_be_written_leaves_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    file.write_text("from m")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        lint(str(file), fix=True)
    assert file.read_text() == "from m"
    assert [path.name for path in file.parent.iterdir()] == ["Modelfile"]


def test_stdin(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(UNTIDY.encode())))
    lint("-", fix=True)
    assert capsysbinary.readouterr() == (TIDY.encode(), b"")


def test_problems_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"FOO")))
    with pytest.raises(ModelfileError, match=r"^stdin:1:1: unknown instruction"):
        lint("-")
