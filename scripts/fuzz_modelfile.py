"""Mutated Modelfiles against the parser: each must parse, dump and parse again to the same, or raise ModelfileError.

    python scripts/fuzz_modelfile.py --seed 1 --mutants 1000000 --hypothesis 20000

Starts from the corpus in tests/modelfiles. A mutant that breaks a promise ends the run with exit code 1 and is written
to the current folder; the same seed finds it again.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from modelctl.parser import ModelfileError, decode, dump, parse, tidy, warnings

CORPUS = Path(__file__).parent.parent / "tests" / "modelfiles"
TOKENS = (
    *("FROM ", "PARAMETER ", "TEMPLATE ", "SYSTEM ", "ADAPTER ", "MESSAGE ", "LICENSE ", "REQUIRES ", "RENDERER "),
    *("PARSER ", "DRAFT ", "CAPABILITY ", "from ", "system ", "FORM ", "stop ", "temperature ", "num_ctx ", "user "),
    *(" AS ", " SCALE ", " as ", " scale ", "AS=", "0.5", "-1", "1e999", "nan", "0", "true", "llama3", "./a.gguf"),
    *('"', '""', '"""', '""""', '"""""', "'", "\\", "#", "# ", " # ", "=", ":", "*", "?", "~", "/", "{{ .Prompt }}"),
    *(
        "\n",
        "\r\n",
        "\r",
        " ",
        "\t",
        "\n\n",
        '"\n',
        '"""\n',
        '\n"""',
        " \n",
        '" \n',
        "FROM m\n",
        '\nSYSTEM "',
        "\f",
        "\x0b",
    ),
    *("\0", "\x1b", "\x85", "\xa0", "\u200b", "\u2028", "\ufeff", "é", "世", "🦙", "\u0301", "９"),
)
_HOSTILE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what a terminal acts upon


def check(data: bytes) -> bool:
    """Whether `data` is a Modelfile. Anything but `ModelfileError` and any broken promise is raised."""
    try:
        modelfile = parse(decode(data))
    except ModelfileError as error:
        check_error(error)
        return False
    text = dump(modelfile)
    assert parse(text) == modelfile, "dump does not read back as the same"
    assert dump(parse(text)) == text, "dump is not canonical"
    assert parse(tidy(modelfile)) == modelfile, "tidy does not read back as the same"
    assert not _HOSTILE.search("".join(map(str, warnings(modelfile)))), "a warning holds control characters"
    return True


def check_error(error: ModelfileError) -> None:
    assert error.problems, "an error without problems"
    assert not _HOSTILE.search(str(error)), "the message holds control characters"
    for problem in error.problems:
        assert problem.message, "a problem without words"
        assert len(str(problem)) < 2000, "a message of a page"
        if problem.line:
            assert 1 <= problem.column <= len(problem.source) + 1, "a column outside its line"
            assert not set("\r\n") & set(problem.source), "a source line of several lines"


def fuzz(n_mutants: int, seed: int) -> Counter[str]:
    """How many mutants were "valid" and "invalid". Raises `AssertionError` with the mutant that broke a promise."""
    outcome: Counter[str] = Counter()
    for mutant in mutants(n_mutants, seed):
        try:
            outcome["valid" if check(mutant) else "invalid"] += 1
        except Exception as failure:
            raise AssertionError(f"{type(failure).__name__}: {failure}", mutant) from failure
    return outcome


def mutants(n_mutants: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    corpus = [path.read_bytes() for path in sorted(CORPUS.glob("*/*.modelfile"))]
    corpus += [path.read_bytes() for path in sorted(CORPUS.glob("valid/*.modelfile"))] * 2  # the likelier to stay valid
    for _ in range(n_mutants):
        data = rng.choice(corpus)
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            data = rng.choice(_MUTATIONS)(rng, data, corpus)
        yield data


def hypothesize(n_examples: int, seed: int) -> None:
    """The same promises for texts that hypothesis puts together from tokens, and shrinks when one fails."""
    import hypothesis
    from hypothesis import strategies as st

    pieces = st.sampled_from(TOKENS) | st.text(st.characters(codec="utf-8"), max_size=8)

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=n_examples, database=None, deadline=None)
    @hypothesis.given(st.lists(pieces, max_size=24).map("".join))
    def holds(text: str) -> None:
        check(text.encode())
        check(b"FROM m\n" + text.encode())

    holds()


Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((0, 1, 1, 2, 5, 20)))


def _byte(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + rng.randint(0, 1) :]


def _bit(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _delete(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.randint(1, 3) + data[end:]


def _truncate(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    return data[: rng.randint(0, len(data))]


def _splice(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    other = rng.choice(corpus)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _token(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.choice(TOKENS).encode() + data[end if rng.random() < 0.5 else start :]


def _lines(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    lines = data.splitlines(keepends=True) + rng.choice(corpus).splitlines(keepends=True)[: rng.randint(0, 2)]
    rng.shuffle(lines)
    return b"".join(lines)


def _line_ends(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b" \n", b"")))


def _case(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    return data.swapcase()


def _encode(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    return data.decode(errors="replace").encode(
        rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32", "cp037")), "replace"
    )


_MUTATIONS: tuple[Mutation, ...] = (
    *(_byte, _bit, _delete, _repeat, _truncate, _splice, _lines, _line_ends, _case, _encode),
    *(_token,) * 6,
)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--mutants", type=int, default=1_000_000)
    options.add_argument("--hypothesis", type=int, default=0, metavar="EXAMPLES")
    chosen = options.parse_args()
    begin = time.monotonic()
    try:
        outcome = fuzz(chosen.mutants, chosen.seed)
    except AssertionError as failure:
        Path("fuzz-failure.modelfile").write_bytes(failure.args[1])
        print(f"{failure.args[0]}\n{failure.args[1]!r}\nwritten to fuzz-failure.modelfile", file=sys.stderr)
        return 1
    print(f"{chosen.mutants} mutants, seed {chosen.seed}: {dict(outcome)}, {time.monotonic() - begin:.0f} s")
    if chosen.hypothesis:
        hypothesize(chosen.hypothesis, chosen.seed)
        print(f"{chosen.hypothesis} texts from hypothesis: all held, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
