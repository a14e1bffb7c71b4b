"""Headers that lie: counts, lengths, types, offsets. Each is refused with words that say where and why."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf_files import File, Key, Tensor, string, tiny_base

from modelctl.gguf_check import Array, InvalidGGUF, check_base, read_header

HUGE = 1 << 60
SMALL = File([Key("a", "u32", 1)], [Tensor("t", (4,))])


def problem(tmp_path: Path, data: bytes, name: str = "x.gguf") -> str:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InvalidGGUF) as caught:
        read_header(path)
    assert caught.value.message == f"{path}: {caught.value.problem}"
    return caught.value.problem


def cut(n: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:n]


MALFORMED: dict[str, tuple[File | bytes, str]] = {
    "empty": (b"", "not a GGUF file: it is empty"),
    "text": (b"hello world, this is text", "not a GGUF file: starts with 'hello wo'"),
    "three bytes": (b"GGU", "not a GGUF file: starts with 'GGU'"),
    "magic alone": (b"GGUF", "truncated or corrupt: it ends within the first 8 bytes"),
    "version 0": (File(version=0), "GGUF version 0; expected 2 or 3"),
    "version 1": (File(version=1), "GGUF version 1; expected 2 or 3"),
    "version 4": (File(version=4), "GGUF version 4; expected 2 or 3"),
    "big-endian": (File(version=3 << 24), "a big-endian GGUF file; expected little-endian"),
    "no counts": (
        b"GGUF" + struct.pack("<I", 3),
        "truncated or corrupt: the number of tensors needs 8 bytes at offset 8, the file ends after 0",
    ),
    "too many keys": (File(n_keys=HUGE), f"claims {HUGE} metadata keys; the limit is 65536"),
    "100,000 keys": (
        File([Key(f"k{i}", "u8", 0) for i in range(100_000)]),
        "claims 100000 metadata keys; the limit is ",
    ),
    "more keys than bytes": (
        File(n_keys=1000),
        "truncated or corrupt: claims 1000 metadata keys, with 8 bytes left",
    ),
    "too many tensors": (File(n_tensors=-1 & 0xFFFFFFFFFFFFFFFF), f"claims {2**64 - 1} tensors; the limit is 65536"),
    "more tensors than bytes": (File(n_tensors=9), "truncated or corrupt: claims 9 tensors, with 16 bytes left"),
    "key too long": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + b"k" * 32,
        f"metadata key 0 has {HUGE} bytes; the limit is 65535",
    ),
    "key beyond the file": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 60_000) + b"k" * 32,
        "truncated or corrupt: metadata key 0 needs 60000 bytes at offset 32, the file ends after 32",
    ),
    "empty key": (File([Key("", "u32", 1)]), "metadata key 0 has an empty name"),
    "duplicate key": (File([Key("a", "u32", 1), Key("a", "u32", 1)]), "metadata key 1 is a duplicate of 'a'"),
    "unknown value type": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<II", 13, 0),
        "metadata 'a' has the unknown value type 13",
    ),
    "string beyond the file": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IQ", 8, 99),
        "truncated or corrupt: metadata 'a' needs 99 bytes at offset 45, the file ends after 0",
    ),
    "string too long": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IQ", 8, HUGE),
        f"metadata 'a' has {HUGE} bytes; the limit is 16777216",
    ),
    "array too long": (
        File([Key("a", "arr", [], "u8", length=HUGE)]),
        f"metadata 'a' claims {HUGE} elements; the limit is 67108864",
    ),
    "array beyond the file": (
        File([Key("a", "arr", [1, 2], "u32", length=99)]),
        "truncated or corrupt: metadata 'a' claims 99 elements, with 15 bytes left",
    ),
    "array of strings beyond the file": (
        File([Key("a", "arr", ["x"], "str", length=9)]),
        "truncated or corrupt: metadata 'a' claims 9 elements, with 15 bytes left",
    ),
    "string in an array beyond the file": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IIQQ", 9, 8, 1, HUGE) + b"x",
        f"a string of metadata 'a' has {HUGE} bytes; the limit is 16777216",
    ),
    "array of arrays": (
        File([Key("a", "arr", [], "arr", length=1)]),
        "metadata 'a' is an array of arrays, which GGUF readers do not take",
    ),
    "array of an unknown type": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IIQ", 9, 77, 0),
        "metadata 'a' has the unknown value type 77",
    ),
    "alignment 0": (SMALL.put("general.alignment", "u32", 0), "general.alignment must be a power of two, found 0"),
    "alignment 3": (SMALL.put("general.alignment", "u32", 3), "general.alignment must be a power of two, found 3"),
    "alignment u64": (
        SMALL.put("general.alignment", "u64", 32),
        "general.alignment must be of type UINT32, found UINT64",
    ),
    "alignment string": (
        SMALL.put("general.alignment", "str", "32"),
        "general.alignment must be of type UINT32, found STRING",
    ),
    "tensor without a name": (SMALL.tensor("t", new=""), "the name of tensor 0 has an empty name"),
    "tensor name of 64 bytes": (
        SMALL.add(Tensor("n" * 64, (4,))),
        "the name of tensor 1 has 64 bytes; the limit is 63",
    ),
    "duplicate tensor": (SMALL.add(Tensor("t", (4,))), "the name of tensor 1 is a duplicate of 't'"),
    "no dimensions": (SMALL.tensor("t", shape=()), "tensor 't' has 0 dimensions; expected 1 to 4"),
    "5 dimensions": (SMALL.tensor("t", shape=(1, 1, 1, 1, 1)), "tensor 't' has 5 dimensions; expected 1 to 4"),
    "dimension 0": (
        SMALL.tensor("t", shape=(4, 0)),
        "tensor 't' has the shape [4, 0]; every dimension must be 1 or more",
    ),
    "dimension below 0": (
        SMALL.tensor("t", shape=(2**64 - 4,)),
        f"tensor 't' has the shape [{2**64 - 4}]; every dimension must be 1 or more",
    ),
    "removed type": (SMALL.tensor("t", type=4), "tensor 't' has the unknown type 4"),
    "unknown type": (SMALL.tensor("t", type=43), "tensor 't' has the unknown type 43"),
    "rows that do not fill a block": (
        SMALL.tensor("t", type="Q4_0", data=b""),
        "tensor 't' has rows of 4 elements; Q4_0 needs a multiple of 32",
    ),
    "offset off the alignment": (SMALL.tensor("t", offset=1), "tensor 't' is at data offset 1; expected 0"),
    "overlap": (SMALL.add(Tensor("u", (4,), offset=0)), "tensor 'u' is at data offset 0; expected 32"),
    "gap": (SMALL.add(Tensor("u", (4,), offset=64)), "tensor 'u' is at data offset 64; expected 32"),
    "offset that wraps": (
        SMALL.add(Tensor("u", (4,), offset=2**64 - 32)),
        f"tensor 'u' is at data offset {2**64 - 32}; expected 32",
    ),
    "a byte short": (
        File([], [Tensor("t", (8,))], alignment=32).build()[:-1],
        "truncated or corrupt: tensor 't' ends at byte 96, the file has 95",
    ),
    "a terabyte short": (
        SMALL.tensor("t", shape=(1 << 38,)),
        "truncated or corrupt: tensor 't' ends at byte 1099511627872, the file has 96",
    ),
    "size that overflows 64 bits": (
        SMALL.tensor("t", shape=(1 << 32, 1 << 32, 1 << 32)),
        f"truncated or corrupt: tensor 't' ends at byte {(1 << 98) + 96}, the file has 96",
    ),
    "tensor list cut": (
        SMALL.build()[:60],
        "truncated or corrupt: tensor 't' needs 8 bytes at offset 54, the file ends after 6",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file, expected = MALFORMED[name]
    assert problem(tmp_path, file if isinstance(file, bytes) else file.build()).startswith(expected)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = SMALL.build()
    for length in range(len(whole) - 16):  # the last 16 bytes are padding
        problem(tmp_path, whole[:length])
    assert read_header(SMALL.write(tmp_path / "whole.gguf")).tensors["t"].size == 16


@pytest.mark.parametrize(
    ("name", "data", "hint"),
    [
        ("adapter_model.safetensors", b"\x88\0\0\0\0\0\0\0{", "for a PEFT adapter give the folder: "),
        ("adapter_config.json", b'{"r": 4}', "for a PEFT adapter give the folder: "),
        ("adapter_model.bin", b"PK\x03\x04", "it looks like a PyTorch pickle, which is never loaded"),
        ("old.bin", b"tjgg\x03\0\0\0", "it looks like a PyTorch pickle"),
        ("old.ggml", b"tjgg\x03\0\0\0", "it is in a format from before GGUF"),
        ("base.gguf", b"version https://git-lfs.github.com/spec/v1", "it looks like a Git LFS pointer"),
        ("notes.txt", b"hello", "expected the bytes GGUF at its start"),
    ],
)
def test_other_formats_get_a_remedy(name: str, data: bytes, hint: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InvalidGGUF) as caught:
        read_header(path)
    assert (caught.value.hint or "").startswith(hint)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    for path, expected in [(tmp_path, "expected a GGUF file, found a folder"), (tmp_path / "none", "no such file")]:
        with pytest.raises(InvalidGGUF) as caught:
            read_header(path)
        assert caught.value.problem == expected


def test_a_lying_header_costs_no_memory(tmp_path: Path) -> None:
    """65,536 strings that claim 16 MiB each, in a sparse file of 64 GiB: refused once 32 MiB of text is read."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 65_536))
        for i in range(8):
            file.write(string(f"k{i}") + struct.pack("<IQ", 8, 16 << 20))
            file.seek(16 << 20, 1)
        file.truncate(64 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidGGUF, match="the metadata holds more than 32 MiB of text"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 80 << 20  # two strings, and the buffers they came through
    finally:
        tracemalloc.stop()


def test_values_of_every_type(tmp_path: Path) -> None:
    numbers = {"u8": 255, "i8": -128, "u16": 65535, "i16": -5, "u32": 2**32 - 1, "i32": -7, "u64": 2**64 - 1, "i64": -9}
    keys = [Key(kind, kind, value) for kind, value in numbers.items()]
    keys += [Key("f32", "f32", 0.5), Key("f64", "f64", 0.1), Key("yes", "bool", 1), Key("s", "str", "Grüße")]
    keys += [Key("words", "arr", ["a", "", "ü"], "str"), Key("floats", "arr", [0.5, -2.0], "f32")]
    header = read_header(File(keys).write(tmp_path / "all.gguf"))
    expected = {**numbers, "f32": 0.5, "f64": 0.1, "yes": True, "s": "Grüße"}
    assert {key: value for key, value in header.metadata.items() if not isinstance(value, Array)} == expected
    arrays = [value for value in header.metadata.values() if isinstance(value, Array)]
    assert [array.values() for array in arrays] == [[b"a", b"", "ü".encode()], [0.5, -2.0]]
    assert header.types["u16"] == "UINT16"
    assert header.types["words"] == "ARRAY"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64, 1])
def test_tensors_lie_where_the_file_says(version: int, alignment: int, tmp_path: Path) -> None:
    tensors = [Tensor("a", (4, 3), data=bytes(range(48))), Tensor("b", (32, 2), "Q4_0", data=b"\x07" * 36)]
    file = File([Key("general.alignment", "u32", alignment)], tensors, version=version, alignment=alignment)
    header = read_header(file.write(tmp_path / "x.gguf"))
    data = header.path.read_bytes()
    for tensor in tensors:
        found = header.tensors[str(tensor.name)]
        assert found.shape == tensor.shape
        assert data[found.offset : found.offset + found.size] == tensor.data


def test_the_real_base_reads_as_the_gguf_package_reads_it(base: Path) -> None:
    """All of it but the vocabulary, which takes that package seconds."""
    header = read_header(base)
    assert header.version == 3
    assert header.metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_1
    assert len(header.tensors) == 272
    last = max(header.tensors.values(), key=lambda tensor: tensor.offset)
    assert last.offset + last.size == header.file_size
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Array)
    words = tokens.values()
    assert (len(words), words[:3]) == (49152, [b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>"])


def test_a_string_across_the_buffers_edge(tmp_path: Path) -> None:
    """Arrays longer than one read of the file come out whole, wherever the reads part them."""
    words = [f"w{i}" * (i % 97) for i in range(30_000)]
    header = read_header(
        File([Key("before", "str", "x" * 1_048_000), Key("words", "arr", words, "str"), Key("z", "u8", 7)]).write(
            tmp_path / "x"
        )
    )
    array = header.metadata["words"]
    assert isinstance(array, Array)
    assert array.size > 2 << 20
    assert array.values() == [word.encode() for word in words]
    assert header.metadata["z"] == 7


def test_tiny_base_is_well_formed(tmp_path: Path) -> None:
    """The builder that the other tests break files of, against the gguf package."""
    path = tiny_base().write(tmp_path / "tiny.gguf")
    theirs = {tensor.name: (tuple(tensor.shape), tensor.data_offset) for tensor in gguf.GGUFReader(path).tensors}
    ours = {tensor.name: (tensor.shape, tensor.offset) for tensor in read_header(path).tensors.values()}
    assert ours == theirs


def test_what_is_quoted_of_a_file_is_short_and_escaped(tmp_path: Path) -> None:
    file = tiny_base().put("general.type", "str", "\x1b[2J" + "z" * 1_000_000)
    with pytest.raises(InvalidGGUF) as caught:
        check_base(read_header(file.write(tmp_path / "x.gguf")))
    assert caught.value.problem.startswith("has general.type '\\x1b[2Jzzz")
    assert len(caught.value.problem) < 600
