"""Modelfile + store -> manifest, on real GGUF files: small ones that llama.cpp would load."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from modelctl import parser
from modelctl.create import create
from modelctl.model import Model
from modelctl.parser import ModelfileError
from modelctl.store import Digest, Ref, Store, StoreError, media
from tests.gguf_check.gguf_files import tiny_adapter, tiny_base

Make = Callable[..., Ref]


class Recorder:
    """A report, kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.seen: dict[str, tuple[int, int]] = {}

    def status(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, label: str, done: int, total: int) -> None:
        self.seen[label] = (done, total)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where Modelfiles lie: a base, two adapters, one for another architecture."""
    folder = tmp_path / "work"
    (folder / "sub").mkdir(parents=True)
    tiny_base().write(folder / "base.gguf")
    tiny_adapter().write(folder / "math.gguf")
    tiny_adapter("ffn_up").write(folder / "sub" / "science.gguf")
    tiny_adapter(architecture="gemma").write(folder / "gemma.gguf")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def report() -> Recorder:
    return Recorder()


@pytest.fixture
def make(store: Store, folder: Path, report: Recorder) -> Make:
    def make(text: str, name: str = "tutor") -> Ref:
        return create(store, name, parser.parse(text), folder, report)

    return make


def refused(make: Make, text: str) -> str:
    """The error, which must come with its line; nothing may be left under the name."""
    with pytest.raises(ModelfileError) as caught:
        make(text, "never")
    assert all(problem.line for problem in caught.value.problems)
    return str(caught.value)


def test_everything_a_modelfile_says_is_in_the_model(make: Make, store: Store) -> None:
    make(
        "FROM ./base.gguf\n"
        "ADAPTER ./math.gguf\n"
        "ADAPTER sub/science.gguf AS physics SCALE -0.5\n"
        "PARAMETER temperature 0.3\nPARAMETER stop a\nPARAMETER stop b\n"
        "SYSTEM Be brief.\nMESSAGE user Hi\nMESSAGE assistant Hello\n"
        "LICENSE one\nLICENSE two\n"
    )
    model = Model.load(store, "tutor")
    assert [(ref.index, ref.name, ref.scale) for ref in model.adapters] == [(0, "math", 0.0), (1, "physics", -0.5)]
    assert model.adapters[0].rank == 4
    assert model.adapters[0].alpha == 8.0
    assert model.adapters[0].target_modules == ("attn_q", "attn_v")
    assert model.adapters[1].source == "science.gguf"
    assert model.parameters == {"temperature": 0.3, "stop": ["a", "b"]}
    assert (model.system, model.template) == ("Be brief.", None)
    assert [(message.role, message.content) for message in model.messages] == [("user", "Hi"), ("assistant", "Hello")]
    assert model.licenses == ("one", "two")
    assert (model.details.family, model.details.quantization_level) == ("llama", "F32")
    assert model.base_path.read_bytes() == tiny_base().build()


def test_paths_start_in_the_modelfiles_folder_and_not_in_the_current_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make("FROM base.gguf\nADAPTER sub/../math.gguf\n")


def test_home_and_blanks_in_paths(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "math.gguf").rename(folder / "my math v2.gguf")
    ref = make('FROM ~/base.gguf\nADAPTER "./my math v2.gguf"\n')
    (layer,) = ref.manifest.of_type(media.ADAPTER)
    assert layer.annotations[media.ADAPTER_NAME] == parser.adapter_name("my math v2.gguf")


def test_a_second_name_on_the_same_base_stores_nothing_twice(make: Make, store: Store, report: Recorder) -> None:
    make("FROM ./base.gguf\nADAPTER ./math.gguf\n")
    assert any(line.startswith("creating new layer sha256:") for line in report.lines)
    before = sorted(path.name for path in (store.root / "blobs").iterdir())
    report.lines.clear()
    make("FROM ./base.gguf\nADAPTER ./math.gguf\n", "second")
    assert sorted(path.name for path in (store.root / "blobs").iterdir()) == before
    layers = [line for line in report.lines if "layer" in line]
    assert len(layers) == 3
    assert all(line.startswith("using existing layer sha256:") for line in layers)


def test_the_same_modelfile_gives_the_same_id(make: Make) -> None:
    text = "FROM ./base.gguf\nADAPTER ./math.gguf\nPARAMETER top_k 3\nPARAMETER seed 1\n"
    assert make(text).digest == make(text, "second").digest


def test_large_files_show_progress(make: Make, report: Recorder, folder: Path) -> None:
    make("FROM ./base.gguf\nADAPTER ./math.gguf\n")
    size = (folder / "base.gguf").stat().st_size
    assert report.seen["storing base base.gguf"] == (size, size)
    assert "storing adapter math" in report.seen


def test_a_peft_folder_is_converted(store: Store, base: Path, report: Recorder) -> None:
    """The example adapters, on the real base they were trained for."""
    root = Path(__file__).parent.parent
    text = f"FROM {base}\nADAPTER ./examples/adapters/pirate\n"
    create(store, "tutor", parser.parse(text), root, report)
    (adapter,) = Model.load(store, "tutor").adapters
    assert (adapter.name, adapter.rank, adapter.alpha, adapter.source) == ("pirate", 4, 8.0, "pirate")
    assert adapter.path.read_bytes()[:4] == b"GGUF"
    assert not any((store.root / "staging").iterdir())


# FROM a model


@pytest.fixture
def parent(make: Make) -> Ref:
    return make(
        "FROM ./base.gguf\nADAPTER ./math.gguf\nPARAMETER temperature 0.3\nPARAMETER stop a\nPARAMETER top_k 3\n"
        "SYSTEM parent\nMESSAGE user old\nLICENSE first\n",
        "parent",
    )


def test_a_child_inherits_everything(make: Make, store: Store, parent: Ref) -> None:
    make("FROM parent\n", "child")
    old, new = Model.load(store, "parent"), Model.load(store, "child")
    assert (new.base_digest, new.adapters) == (old.base_digest, old.adapters)
    assert (new.parameters, new.system, new.messages) == (old.parameters, old.system, old.messages)
    assert (new.licenses, new.details) == (old.licenses, old.details)


def test_what_a_child_says_is_merged_replaced_or_added(make: Make, store: Store, parent: Ref) -> None:
    make(
        "FROM parent\nADAPTER sub/science.gguf SCALE 2\nPARAMETER temperature 0.9\nPARAMETER stop b\n"
        "MESSAGE user new\nSYSTEM child\nLICENSE second\nLICENSE first\n",
        "child",
    )
    child = Model.load(store, "child")
    assert [(ref.index, ref.name, ref.scale) for ref in child.adapters] == [(0, "math", 0.0), (1, "science", 2.0)]
    assert child.parameters == {"temperature": 0.9, "stop": ["b"], "top_k": 3}
    assert [message.content for message in child.messages] == ["new"]
    assert child.system == "child"
    assert child.licenses == ("first", "second")


def test_an_empty_text_takes_the_inherited_one_away(make: Make, store: Store, parent: Ref) -> None:
    make('FROM parent\nSYSTEM ""\n', "child")
    assert Model.load(store, "child").system is None


def test_a_file_of_a_models_name_wins_but_a_folder_does_not(make: Make, folder: Path, parent: Ref) -> None:
    (folder / "parent").mkdir()
    assert make("FROM parent\n").manifest.of_type(media.ADAPTER)
    (folder / "parent").rmdir()
    tiny_base().write(folder / "parent")
    assert not make("FROM parent\n").manifest.of_type(media.ADAPTER)


def test_an_adapters_name_must_not_be_taken_by_the_parent(make: Make, parent: Ref) -> None:
    said = refused(make, "FROM parent\nADAPTER ./math.gguf\n")
    assert "'math'" in said
    assert "AS math2" in said
    assert make("FROM parent\nADAPTER ./math.gguf AS math2\n")


def test_layers_that_no_modelfile_can_say_come_along(make: Make, store: Store, parent: Ref) -> None:
    from dataclasses import replace

    from modelctl.store import Layer

    extra = store.put(b"projector")
    layer = Layer(media.PROJECTOR, extra.digest, extra.size)
    store.write("parent", replace(parent.manifest, layers=(*parent.manifest.layers, layer)))
    assert make("FROM parent\n", "child").manifest.of_type(media.PROJECTOR) == (layer,)


# what is kept without effect


def test_instructions_without_effect_are_kept_and_said(make: Make, store: Store, report: Recorder) -> None:
    make("FROM ./base.gguf\nRENDERER qwen\nPARSER qwen\nREQUIRES 0.14.0\nPARAMETER low_vram true\n")
    model = Model.load(store, "tutor")
    assert model.kept == {"renderer": "qwen", "parser": "qwen", "requires": "0.14.0"}
    assert model.parameters == {}
    assert [warning.split(":")[1] for warning in report.warnings] == ["2", "3", "4", "5"]
    again = parser.parse(model.modelfile())
    assert (again.renderer, again.parser, again.requires) == ("qwen", "qwen", "0.14.0")


# refusals


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM ./missing.gguf", "no such file"),
        ("FROM ./bas.gguf", "did you mean base.gguf?"),
        ("FROM ./math.gguf", "ADAPTER line"),
        ("FROM ./gguf.txt", "not a GGUF"),
        ("FROM ./empty.gguf", "is empty"),
        ("FROM ./sub", "is a folder"),
        ("FROM ./sub", "sub/science.gguf"),
        ("FROM ./fifo", "is a FIFO"),
        ("FROM /dev/zero", "is a device"),
        ("FROM ./socket", "is a socket"),
        ("FROM ./loop", "symbolic links"),
        ("FROM ~nobody-is-called-so/x.gguf", "~nobody-is-called-so"),
        ("FROM nosuch", "no model and no file"),
        ("FROM hf.co/some/thing", "download"),
        ("FROM base.gguf\nFROM base.gguf", "second FROM"),
        ("FROM ./base.gguf\nADAPTER ./missing.gguf", "no such file"),
        ("FROM ./base.gguf\nADAPTER ./gguf.txt", "not a GGUF"),
        ("FROM ./base.gguf\nADAPTER ./base.gguf", "FROM line"),
        ("FROM ./base.gguf\nADAPTER ./gemma.gguf", "'gemma'"),
        ("FROM ./base.gguf\nADAPTER ./sub", "adapter_config.json"),
        ("FROM ./base.gguf\nADAPTER ./fifo", "is a FIFO"),
        ("FROM ./base.gguf\nADAPTER ./math.gguf\nADAPTER ./math.gguf", "AS"),
        ("FROM ./base.gguf\nADAPTER ./math.gguf SCALE nan", "from -100 to 100"),
        ("FROM ./base.gguf\nADAPTER ./*.gguf", "wildcards"),
        ('FROM ./base.gguf\nADAPTER "./*.gguf"', "wildcards"),
        ("FROM ./base.gguf\nTEMPLATE {{ if }}", "line 1"),
        ("FROM ./base.gguf\nPARAMETER temperature hot", "'hot'"),
    ],
)
def test_what_is_refused_names_its_line_and_leaves_nothing(
    text: str, said: str, make: Make, store: Store, folder: Path
) -> None:
    (folder / "gguf.txt").write_text("Hello!")
    (folder / "empty.gguf").touch()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # the path of a socket may have 108 bytes
        listener.bind("socket")
        os.fchdir(here)
        os.close(here)
        assert said in refused(make, text)
    assert store.list() == []
    assert not store.blobs.folder.exists()


def test_the_error_of_an_adapter_points_at_its_path(make: Make) -> None:
    with pytest.raises(ModelfileError) as caught:
        make("FROM ./base.gguf\n\n  ADAPTER  ./missing.gguf AS gone\n")
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.width) == (3, 12, len("./missing.gguf"))


def test_a_link_must_not_lead_out_of_the_folder(make: Make, folder: Path, tmp_path: Path) -> None:
    outside = tiny_base().write(tmp_path / "outside.gguf")
    (folder / "link.gguf").symlink_to(outside)
    (folder / "inside.gguf").symlink_to("base.gguf")
    (folder / "up").symlink_to(tmp_path)
    assert f"name its target: {outside}" in refused(make, "FROM ./link.gguf\n")
    assert "leads out" in refused(make, "FROM ./up/outside.gguf\n")
    assert make("FROM ./inside.gguf\n")
    assert make(f"FROM {outside}\n")
    assert make("FROM ../outside.gguf\n")


def test_a_folder_that_is_a_link_itself_is_fine(store: Store, folder: Path, tmp_path: Path, report: Recorder) -> None:
    (tmp_path / "alias").symlink_to(folder)
    assert create(store, "tutor", parser.parse("FROM base.gguf\n"), tmp_path / "alias", report)


def test_a_failed_create_leaves_the_old_model(make: Make, store: Store) -> None:
    old = make("FROM ./base.gguf\nADAPTER ./math.gguf\n")
    with pytest.raises(ModelfileError):
        make("FROM ./base.gguf\nADAPTER ./gone.gguf\n")
    assert store.resolve("tutor") == old


def test_a_damaged_parent_is_named(make: Make, store: Store, parent: Ref) -> None:
    (layer,) = parent.manifest.of_type(media.PARAMS)
    store.blob(layer.digest).unlink()
    assert "parent" in refused(make, "FROM parent\n")


def test_a_name_that_is_none(make: Make) -> None:
    with pytest.raises(StoreError, match="not a model name"):
        make("FROM ./base.gguf\n", "a b")


def test_the_config_is_ollamas(make: Make, store: Store) -> None:
    ref = make("FROM ./base.gguf\n")
    config = json.loads(store.read(ref.manifest.config.digest))
    assert config["model_format"] == "gguf"
    assert config["model_family"] == "llama"
    assert config["context_length"] == 128
    assert ref.manifest.config.media_type == media.CONFIG
    assert Digest.of(store.read(ref.manifest.config.digest)) == ref.manifest.config.digest
