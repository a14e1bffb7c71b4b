"""Random small templates through modelctl and through real text/template: every difference is printed.

    python scripts/go_golden/fuzz.py [--seed 1] [--count 20000]

Needs Go. Text differs, or one side fails and the other doesn't: that is a difference; the wording of errors is not.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import real_go

from modelctl.errors import BadRequest
from modelctl.template.go.compile import Program
from modelctl.template.go.data import decoded
from modelctl.template.go.funcs import FUNCTIONS
from modelctl.template.go.parser import parse
from modelctl.template.go.values import printable

DATA: dict[str, Any] = {
    "S": 'héllo <b>&"q"\'\n',
    "T": "user",
    "E": "",
    "N": 3,
    "F": 2.5,
    "Big": 1234567,
    "Tiny": 0.00001234,
    "Z": 0,
    "Yes": True,
    "No": False,
    "Nil": None,
    "L": ["a", "b", "ü"],
    "M": {"k": "v", "a": 1, "z": None, "l": [1, "x"]},
    "LL": [[1, 2], []],
    "LM": [{"Role": "user", "C": "hi"}, {"Role": "system", "C": " pad "}],
    "EL": [],
    "EM": {},
}
FIELDS = [f".{name}" for name in DATA] + [".Missing", "$.S", "$.L", "$.M.k", ".M.a", ".M.l", ".M.nope", ".Role", ".C"]
LITERALS = [
    '"x"',
    '"a%db"',
    '"\\u00e9\\x41\\n"',
    "`raw`",
    "0",
    "1",
    "2",
    "-7",
    "0x1F",
    "017",
    "1.5",
    "1e3",
    "2e-7",
    "'a'",
    "'\\n'",
]
LITERALS += ["true", "false", "nil", '""', "1_000", '"user"', "3.0", "100000000.0"]
FORMATS = ["%s", "%d", "%v", "%q", "%5d|", "%-5s|", "%05.1f", "%t", "%c", "%U", "%+v", "%#v", "%T", "%%", "%e", "%g"]
FORMATS += ["%6.2f", "%*d", "%[2]v %[1]v", "%.2s", "%+d", "% d", "%o", "%!", "%", "%z", "%08d", "%-08d|", "%.3d"]
FORMATS += ["%+q", "%#q", "%.0f", "%10.3v|", "%G", "%O", "%#o", "%#U", "%[3]d", "%[1]*d", "%.*f", "%s %s %s"]
NO_FLOATS = ["%x", "%X", "%#x", "% x", "%# X", "%b", "%08b", "%10x|", "%-10.2X|", "%#b"]  # see below
STRINGS = [".S", ".T", ".E", "$.S", '"x"', '"user"', '"a%db"', "`raw`", '""']
LISTS = [".L", ".LL", ".LM", ".EL", "$.L"]
INTEGERS = ["0", "1", "2", "-7", "0x1F", "'a'", "(len .S)", "(len .L)", "(index .S 1)"]
ONE = ["len", "not", "print", "println", "html", "js", "urlquery", "json", "printf", "index", "slice", "and", "or"]
TWO = ["eq", "ne", "lt", "le", "gt", "ge", "index", "and", "or", "print", "println", "printf", "slice", "html"]


class Writer:
    """Writes random templates, mostly ones that run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names: list[str] = []

    def template(self) -> str:
        self.names = []
        text = "".join(self.node(0) for _ in range(self.random.randint(1, 4)))
        if self.random.random() < 0.1:
            text = '{{define "t"}}<{{.}}>{{end}}' + text + '{{template "t" ' + self.value(0) + "}}"
        return self.damage(text) if self.random.random() < 0.08 else text

    def damage(self, text: str) -> str:
        i = self.random.randrange(len(text) + 1)
        return (
            text[:i]
            + self.random.choice(["", "", "{{", "}}", " ", "|", "(", ")", '"', ".", "$", "-", ",", "\n", "é"])
            + text[i + 1 :]
        )

    def node(self, depth: int) -> str:
        kinds = ["text", "action", "action", "action", "declare", "if", "with", "range", "comment"]
        kind = self.random.choice(kinds if depth < 3 else kinds[:4])
        return str(getattr(self, kind)(depth))

    def text(self, _depth: int) -> str:
        return self.random.choice(["a", " b ", "\n", "  \n x", "<|e|>", "{", "}", "é", "\t", ""])

    def comment(self, _depth: int) -> str:
        return self.random.choice(["{{/* c */}}", "{{- /* c */ -}}", "{{- /* c */}}"])

    def braces(self, inner: str) -> str:
        left = self.random.choice(["{{", "{{ ", "{{- ", "{{-  "])
        right = self.random.choice(["}}", " }}", " -}}", "  -}}"])
        return left + inner + right

    def action(self, depth: int) -> str:
        return self.braces(self.pipeline(depth))

    def declare(self, depth: int) -> str:
        value = self.pipeline(depth)
        if self.names and self.random.random() < 0.4:
            return self.braces(f"{self.random.choice(self.names)} = {value}")
        self.names.append(self.random.choice(["$a", "$b", "$c"]))
        return self.braces(f"{self.names[-1]} := {value}")

    def block(self, opening: str, depth: int, orelse: bool = True, loop: bool = False) -> str:
        height = len(self.names)
        body = "".join(self.node(depth + 1) for _ in range(self.random.randint(0, 3)))
        if loop and self.random.random() < 0.2:
            jump = self.random.choice(["break", "continue"])
            body += f"{{{{if {self.value(depth)}}}}}{{{{{jump}}}}}{{{{end}}}}{self.text(0)}"
        del self.names[height:]
        if orelse and self.random.random() < 0.4:
            body += self.braces("else") + self.node(depth + 1)
            del self.names[height:]
        return self.braces(opening) + body + self.braces("end")

    def scoped(self, opening: str, depth: int, names: list[str], loop: bool = False) -> str:
        height = len(self.names)
        self.names += names
        text = self.block(opening, depth, loop=loop)
        del self.names[height:]
        return text

    def range(self, depth: int) -> str:
        what = self.random.choice(
            [".L", ".M", ".LL", ".LM", ".EL", ".EM", "$.L", "$.LM", ".M.l", ".Nil", self.value(depth)]
        )
        names = self.random.choice([[], [], ["$v"], ["$k", "$v"]])
        head = f"range {', '.join(names)} := {what}" if names else f"range {what}"
        return self.scoped(head, depth, names, loop=True)

    def pipeline(self, depth: int) -> str:
        stages = [self.command(depth)]
        while self.random.random() < 0.25:
            stages.append(
                self.random.choice([*ONE, 'printf "%v"', 'printf "%5s|"', "eq 1", 'eq "user"', "index .L", "print 1"])
            )
        return self.random.choice([" | ", "|"]).join(stages)

    def sound(self, depth: int) -> str:
        """A call whose arguments have the right types, for values at the top."""
        pick = self.random.choice
        calls = [
            f"len {pick(STRINGS + LISTS + ['.M', '.EM'])}",
            f"index {pick(LISTS)} {pick(['0', '1', '2'])}",
            f'index .M "{pick(["a", "k", "l", "nope"])}"',
            f"slice {pick(STRINGS + LISTS)} {pick(['', '0', '1', '0 1', '1 2'])}",
            f"{pick(['eq', 'ne', 'lt', 'le', 'gt', 'ge'])} {pick(STRINGS)} {pick(STRINGS)}",
            f"{pick(['eq', 'ne', 'lt', 'le', 'gt', 'ge'])} {pick(INTEGERS)} {pick(INTEGERS)}",
            f"{pick(['eq', 'lt', 'ge'])} {pick(['.N', '.F', '.Big', '1.5'])} {pick(['.N', '.F', '2.5', '1e3'])}",
            f'printf "{pick(NO_FLOATS)}" {pick(STRINGS + INTEGERS)}',
            f"{pick(['html', 'js', 'urlquery', 'json', 'print', 'println'])} {self.value(depth)}",
            f"{pick(['and', 'or', 'not', 'print'])} ({pick(['eq', 'ne'])} {pick(STRINGS)} {pick(STRINGS)})",
        ]
        return pick(calls)

    def command(self, depth: int) -> str:
        roll = self.random.random()
        if roll < 0.5 and depth < 2:
            return self.sound(depth)
        if roll < 0.65:
            return self.value(depth)
        if roll < 0.7:
            return f"{self.random.choice(ONE)} {self.value(depth)}"
        if roll < 0.8:
            return f"{self.random.choice(TWO)} {self.value(depth)} {self.value(depth)}"
        if roll < 0.95:
            form = "".join(self.random.choice(FORMATS) for _ in range(self.random.randint(1, 2)))
            args = " ".join(self.value(depth) for _ in range(self.random.randint(0, 3)))
            return f'printf "{form}" {args}'.rstrip()
        return f"slice {self.value(depth)} {self.random.randint(0, 3)} {self.random.randint(0, 4)}"

    def value(self, depth: int) -> str:
        roll = self.random.random()
        if roll < 0.3:
            return self.random.choice(LITERALS)
        if roll < 0.4:
            return "."
        if roll < 0.5 and self.names:
            return self.random.choice(self.names)
        if roll < 0.6 and depth < 3:
            return f"({self.pipeline(depth + 1)})" + self.random.choice(["", "", "", ".k", ".C"])
        return self.random.choice(FIELDS)

    def __getattr__(self, name: str) -> Any:
        """if and with are Python's words."""
        if name in ("if", "with"):
            return lambda depth: self.conditional(name, depth)
        raise AttributeError(name)

    def conditional(self, word: str, depth: int) -> str:
        if self.random.random() < 0.3:
            return self.scoped(f"{word} $w := {self.pipeline(depth)}", depth, ["$w"])
        return self.block(f"{word} {self.pipeline(depth)}", depth)


def ours(source: str) -> dict[str, str]:
    try:
        program = Program(source, parse(source, FUNCTIONS))
    except BadRequest as e:
        return {"output": "", "error": str(e), "stage": "parse"}
    try:
        return {"output": printable(program.run(decoded(DATA)))}
    except BadRequest as e:
        return {"output": "", "error": str(e), "stage": "run"}


# What modelctl means to do otherwise: mistakes that Go meets only when the action runs, Go 1.22's range over a number,
# and hexadecimal and binary floats, which nobody prints.
# Slices also stop at their length here, not at what Go happens to have allocated behind it.
STRICTER = re.compile("nil is not a command|wrong number of args|undefined variable|is not defined")
BEHIND = re.compile("calling slice: index out of range")
NEWER = re.compile(r"range can't iterate over -?\d+$")
FLOATS = re.compile(r"0[xX][01][.pP]|\dp[-+]\d")


def differs(mine: dict[str, str], real: dict[str, str]) -> bool:
    if mine.get("stage") == "parse" and STRICTER.search(mine["error"]):
        return False
    if BEHIND.search(mine.get("error", "")) or NEWER.search(real.get("error", "")) or FLOATS.search(real["output"]):
        return False
    if "error" in mine or "error" in real:
        return ("error" in mine) != ("error" in real)
    return mine["output"] != real["output"]


def main() -> int:
    args = argparse.ArgumentParser()
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--count", type=int, default=20_000)
    args.add_argument("--show", type=int, default=20)
    given = args.parse_args()
    writer = Writer(given.seed)
    sources = [writer.template() for _ in range(given.count)]
    with tempfile.TemporaryDirectory() as folder:
        program = real_go.build(Path(folder))
        theirs = real_go.answers(program, [{"template": source, "data": DATA} for source in sources])
    found = [(s, m, r) for s, m, r in zip(sources, map(ours, sources), theirs, strict=True) if differs(m, r)]
    for source, mine, real in sorted(found, key=lambda item: len(item[0]))[: given.show]:
        print(f"{source!r}\n  modelctl {mine}\n  go       {real}")
    failed = sum("error" in real for real in theirs)
    print(f"{given.count} templates, {failed} of them wrong for Go, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
