"""What repeats mean, what an adapter is called, and where an error of `create` points."""

from __future__ import annotations

import pytest

from modelctl.parser import (
    Adapter,
    Draft,
    From,
    Message,
    Modelfile,
    ModelfileError,
    Parameter,
    System,
    adapter_name,
    dump,
    parse,
)

FULL = """
FROM ./a.gguf
FROM ./b.gguf
ADAPTER ./math.gguf AS sums SCALE 0.8
ADAPTER ./science.gguf
PARAMETER temperature 0.1
PARAMETER temperature 0.2
PARAMETER stop a
PARAMETER seed 7
PARAMETER stop b
PARAMETER use_mlock true
TEMPLATE first
TEMPLATE second
SYSTEM first
SYSTEM ""
MESSAGE user hi
MESSAGE assistant hello
LICENSE MIT
LICENSE Apache-2.0
REQUIRES 0.1.0
REQUIRES 0.2.0
RENDERER r
PARSER p
DRAFT ./d.gguf
CAPABILITY vision
CAPABILITY tools
CAPABILITY vision
"""


def test_repeats_merge_as_in_ollama() -> None:
    file = parse(FULL)
    assert file.sources == (From("./a.gguf"), From("./b.gguf"))
    assert file.adapters == (Adapter("./math.gguf", "sums", 0.8), Adapter("./science.gguf"))
    assert file.parameters == {"temperature": 0.2, "stop": ["a", "b"], "seed": 7}
    assert (file.template, file.system, file.requires) == ("second", "", "0.2.0")
    assert file.messages == (Message("user", "hi"), Message("assistant", "hello"))
    assert file.licenses == ("MIT", "Apache-2.0")
    assert (file.renderer, file.parser, file.drafts) == ("r", "p", (Draft("./d.gguf"),))
    assert file.capabilities == ("vision", "tools")


def test_nothing_said_is_none() -> None:
    file = parse("FROM m")
    assert (file.template, file.system, file.requires, file.renderer, file.parser) == (None,) * 5
    assert (file.adapters, file.messages, file.licenses, file.drafts, file.capabilities) == ((),) * 5
    assert file.parameters == {}


def test_where_and_how_it_was_written_does_not_count() -> None:
    assert parse('# x\nfrom   "m"\n', "a") == parse("FROM m", "b") == Modelfile((From("m"),))
    assert hash(parse("FROM m")) == hash(Modelfile((From("m"),)))
    assert parse("FROM m\nSYSTEM a") != parse("SYSTEM a\nFROM m")


def test_dump_is_canonical() -> None:
    text = 'from "m"\nAdapter  "./a b.gguf"  scale 1\nparameter temperature 1\nPARAMETER stop " x"\nsystem """a\nb"""\n'
    assert dump(parse(text)) == (
        'FROM m\nADAPTER ./a b.gguf SCALE 1.0\nPARAMETER temperature 1.0\nPARAMETER stop " x"\nSYSTEM """a\nb"""\n'
    )


def test_dump_of_a_file_that_was_never_text() -> None:
    file = Modelfile((From("a # b*"), Adapter("x AS y", "n", -0.5), Parameter("use_mmap", True)))
    assert dump(file) == 'FROM "a # b*"\nADAPTER "x AS y" AS n SCALE -0.5\nPARAMETER use_mmap true\n'
    assert parse(dump(file)) == file


def test_dump_keeps_what_cannot_be_seen() -> None:
    file = Modelfile((From("\xad"), Adapter("\u200b"), System(" \ufeff")))
    assert parse(dump(file)) == file


def test_a_text_that_no_quotes_can_hold_is_refused_not_changed() -> None:
    file = parse('FROM m\nSYSTEM """x"""')
    broken = Modelfile((*file.instructions, Message("user", 'a"""\nb')))
    with pytest.raises(ModelfileError, match="the text of this MESSAGE cannot be written in a Modelfile"):
        dump(broken)


def test_error_points_at_the_value() -> None:
    file = parse("FROM m\r\nADAPTER ./math.gguf AS math SCALE 0.5\r\n", "dir/Modelfile")
    error = file.error(file.adapters[0], "no such file", "check the path")
    assert str(error) == (
        "dir/Modelfile:2:9: no such file\n"
        "    2 | ADAPTER ./math.gguf AS math SCALE 0.5\n"
        "      |         ^~~~~~~~~~~\n"
        "    hint: check the path"
    )
    problem = error.problems[0]
    assert (problem.line, problem.column, problem.width) == (2, 9, 11)
    assert problem.source == "ADAPTER ./math.gguf AS math SCALE 0.5"


def test_error_about_a_node_that_was_never_text() -> None:
    assert str(parse("FROM m").error(From("x"), "no such file")) == "Modelfile: no such file"


def test_all_problems_are_reported_at_once_in_order() -> None:
    with pytest.raises(ModelfileError) as caught:
        parse('ADAPTER a/x.gguf\nFOO\nADAPTER b/x.gguf\nSYSTEM "a" b\nPARAMETER seed x\n')
    assert [problem.line for problem in caught.value.problems] == [2, 3, 4, 5, 0]
    assert len(str(caught.value).split("\n\n")) == 5


def test_only_the_first_hundred_problems_are_reported() -> None:
    with pytest.raises(ModelfileError) as caught:
        parse("FROM m\n" + "FOO\n" * 5000)
    problems = caught.value.problems
    assert [problem.line for problem in problems] == [*range(2, 102), 0]
    assert problems[-1].message == "these are the first 100 problems; there may be more"


def test_a_hostile_file_cannot_act_on_the_terminal() -> None:
    with pytest.raises(ModelfileError) as caught:
        parse("FROM m\n\x1b[2J\u202eFOO \x07\nPARAMETER top_k \x9b1m", "\x1b[31m")
    assert all(char.isprintable() or char == "\n" for char in str(caught.value))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("./math.gguf", "math"),
        ("math", "math"),
        ("/srv/loras/math.q8_0.gguf", "math.q8_0"),
        ("~/loras/math.safetensors", "math"),
        ("./peft-math/", "peft-math"),
        ("./lora-v1.5", "lora-v1.5"),
        ("C:\\loras\\math.gguf", "math"),
        ("./My LoRA (final).gguf", "My-LoRA-final"),
        ("./größe.gguf", "gro-e"),
        ("./été.gguf", "ete"),
        ("./数学.gguf", "adapter"),
        ("./01.gguf", "adapter-01"),
        ("./none.gguf", "adapter-none"),
        ("./.gguf", "gguf"),
        ("..", "adapter"),
        ("/", "adapter"),
        ("", "adapter"),
    ],
)
def test_adapter_name(path: str, name: str) -> None:
    assert adapter_name(path) == name
    assert Adapter(path).effective_name == name
    assert Adapter(path, "given").effective_name == "given"


@pytest.mark.parametrize(
    ("lines", "proposed"),
    [
        ("ADAPTER a/x.gguf\nADAPTER b/x.gguf", ["b-x"]),
        ("ADAPTER a/adapter_model.safetensors\nADAPTER b/adapter_model.safetensors", ["b"]),
        ("ADAPTER x.gguf\nADAPTER x.bin\nADAPTER x", ["x-2", "x-3"]),
        ("ADAPTER a/x.gguf\nADAPTER b/x.gguf\nADAPTER c.gguf AS b-x", ["x-2"]),
        ("ADAPTER a.gguf AS n\nADAPTER b.gguf AS n", ["n-2"]),
    ],
)
def test_the_proposed_names_are_free(lines: str, proposed: list[str]) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse(f"FROM m\n{lines}")
    hints = [problem.hint for problem in caught.value.problems]
    assert hints == [f"give this one another: AS {name}" for name in proposed]
