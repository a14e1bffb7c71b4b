"""A slice of scripts/fuzz_modelfile.py, whose long runs are for releases."""

from __future__ import annotations

import fuzz_modelfile
import pytest

from modelctl.parser import ModelfileError, Problem


def test_mutants_parse_and_read_back_or_raise_modelfile_errors() -> None:
    outcome = fuzz_modelfile.fuzz(3000, seed=20261122)
    assert outcome["valid"] > 300
    assert outcome["invalid"] > 1500


def test_texts_put_together_by_hypothesis() -> None:
    fuzz_modelfile.hypothesize(300, seed=20261122)


def test_the_same_seed_gives_the_same_mutants() -> None:
    assert [*fuzz_modelfile.mutants(50, 3)] == [*fuzz_modelfile.mutants(50, 3)] != [*fuzz_modelfile.mutants(50, 4)]


def test_the_fuzzer_notices_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_modelfile, "dump", lambda modelfile: "FROM other\n")
    with pytest.raises(AssertionError, match="dump does not read back as the same"):
        fuzz_modelfile.fuzz(100, seed=1)


def test_the_fuzzer_notices_another_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_modelfile, "parse", lambda text: {}[text])
    with pytest.raises(AssertionError, match="KeyError"):
        fuzz_modelfile.fuzz(1, seed=1)


@pytest.mark.parametrize(
    "error", [ModelfileError([]), ModelfileError([Problem("")]), ModelfileError([Problem("x", line=1, column=9)])]
)
def test_the_fuzzer_notices_a_useless_error(error: ModelfileError) -> None:
    with pytest.raises(AssertionError):
        fuzz_modelfile.check_error(error)
