from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelctl import parser
from modelctl.create import create
from modelctl.errors import BadRequest, ModelctlError, NotFound
from modelctl.mix import Mix
from modelctl.model import Model
from modelctl.store import Layer, Ref, Store, media
from tests.gguf_check.gguf_files import tiny_adapter, tiny_base
from tests.test_create import Recorder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def ref(store: Store, tmp_path: Path) -> Ref:
    tiny_base().write(tmp_path / "base.gguf")
    for name in ("math", "science", "extra"):
        tiny_adapter(*{"math": (), "science": ("ffn_up",), "extra": ("attn_k",)}[name]).write(tmp_path / f"{name}.gguf")
    text = (
        "FROM base.gguf\nADAPTER math.gguf\nADAPTER science.gguf SCALE 0.25\nADAPTER math.gguf AS twin\n"
        'PARAMETER temperature 0.5\nPARAMETER stop "a"\nSYSTEM """Two\nlines"""\nTEMPLATE {{ .Prompt }}\n'
        "MESSAGE user hi\nMESSAGE assistant ho\nLICENSE MIT\n"
    )
    return create(store, "me/Tutor:v2", parser.parse(text), tmp_path, Recorder())


@pytest.fixture
def model(store: Store, ref: Ref) -> Model:
    return Model.load(store, "me/tutor:v2")


def test_the_name_is_short_and_spelled_as_stored(model: Model) -> None:
    assert model.name == "me/Tutor:v2"


def test_adapters_by_name_and_by_index(model: Model) -> None:
    assert model.adapter("science") is model.adapters[1]
    assert model.adapter("1") is model.adapter(1) is model.adapters[1]


@pytest.mark.parametrize("key", ["nope", "3", 3, -1, "-1", "", "99999999999999999999", "²"])
def test_an_unknown_adapter_lists_the_known_ones(model: Model, key: str | int) -> None:
    with pytest.raises(NotFound) as caught:
        model.adapter(key)
    assert "math (0), science (1), twin (2)" in str(caught.value.hint)


def test_a_mistyped_adapter_gets_a_proposal(model: Model) -> None:
    with pytest.raises(NotFound) as caught:
        model.adapter("sciense")
    assert "did you mean 'science'?" in str(caught.value.hint)


def test_scales_are_changed_from_where_they_are(model: Model) -> None:
    start = model.default_scales()
    assert start == {"math": 0.0, "science": 0.25, "twin": 0.0}
    assert model.scales({"0": 1.0}, start) == {"math": 1.0, "science": 0.25, "twin": 0.0}
    assert model.scales({"twin": -2}, {}) == {"math": 0.0, "science": 0.0, "twin": -2.0}
    assert start == {"math": 0.0, "science": 0.25, "twin": 0.0}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"math": 1.0, "nope": 1.0}, NotFound),
        ({"math": math.nan}, BadRequest),
        ({"math": 1.0, "science": 101.0}, BadRequest),
        ({"math": 1.0, "0": 0.5}, BadRequest),
        ({"math": "1"}, BadRequest),
    ],
)
def test_a_bad_change_is_refused_whole(model: Model, change: dict[str, Any], error: type[ModelctlError]) -> None:
    with pytest.raises(error):
        model.scales(change, model.default_scales())


def test_a_mix_is_of_digests(model: Model) -> None:
    math_digest = model.adapters[0].digest
    assert model.mix({"math": 0.5, "science": 0.0}) == Mix.of([(math_digest, 0.5)])
    assert model.mix({"math": 0.5, "twin": 0.25}) == Mix.of([(math_digest, 0.75)])
    assert model.mix({}) == Mix.BASE


def test_options_go_over_the_models_parameters(model: Model) -> None:
    assert model.check_options({}) == {"temperature": 0.5, "stop": ["a"]}
    checked = model.check_options({"temperature": 1, "seed": 7.0, "stop": "x", "top_k": None, "low_vram": True})
    assert checked == {"temperature": 1.0, "seed": 7, "stop": ["x"]}
    assert type(checked["temperature"]) is float
    assert type(checked["seed"]) is int
    assert model.parameters == {"temperature": 0.5, "stop": ["a"]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"temprature": 1}, "temprature"),
        ({"stop": [1]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"num_ctx": True}, "num_ctx"),
    ],
)
def test_a_bad_option_is_named(model: Model, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        model.check_options(options)


def test_the_modelfile_makes_the_same_model_again(store: Store, model: Model, tmp_path: Path) -> None:
    create(store, "again", parser.parse(model.modelfile()), tmp_path, Recorder())
    again = Model.load(store, "again")
    assert [(a.name, a.scale, a.digest) for a in again.adapters] == [
        (a.name, a.scale, a.digest) for a in model.adapters
    ]
    assert (again.base_digest, again.template, again.system) == (model.base_digest, model.template, model.system)
    assert (again.parameters, again.messages, again.licenses) == (model.parameters, model.messages, model.licenses)
    assert again.modelfile() == model.modelfile()


def test_an_unknown_model_gets_the_nearest_name(store: Store, ref: Ref) -> None:
    store.copy(ref.name, "physics")
    with pytest.raises(NotFound, match="'phisics'") as caught:
        Model.load(store, "phisics")
    assert caught.value.hint == "did you mean 'physics'?"
    with pytest.raises(NotFound) as caught:
        Model.load(store, "zzz")
    assert "modelctl list" in str(caught.value.hint)


def test_an_empty_store_says_how_to_begin(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        Model.load(store, "tutor")
    assert "modelctl create" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "../x", "a@sha256:1"])
def test_an_impossible_name(store: Store, name: str) -> None:
    with pytest.raises(BadRequest):
        Model.load(store, name)


def test_a_manifest_of_ollamas_has_no_annotations(store: Store, ref: Ref) -> None:
    layers = tuple(replace(layer, annotations={}) for layer in ref.manifest.layers)
    store.write("plain", replace(ref.manifest, layers=layers))
    model = Model.load(store, "plain")
    assert [(a.index, a.name, a.scale) for a in model.adapters] == [
        (0, "adapter0", 0.0),
        (1, "adapter1", 0.0),
        (2, "adapter2", 0.0),
    ]


def _with(store: Store, ref: Ref, media_type: str, data: bytes) -> None:
    """The model with a layer of that type replaced by `data`."""
    put = store.put(data)
    kept = [layer for layer in ref.manifest.layers if layer.media_type != media_type]
    store.write("bad", replace(ref.manifest, layers=(*kept, Layer(media_type, put.digest, put.size))))


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        (media.PARAMS, b"[1]"),
        (media.PARAMS, b"{"),
        (media.MESSAGES, b'[{"content": "x"}]'),
        (media.MESSAGES, b'{"role": "user"}'),
        (media.SYSTEM, b"\xff\xfe"),
    ],
)
def test_damage_is_one_clear_error(store: Store, ref: Ref, media_type: str, data: bytes) -> None:
    _with(store, ref, media_type, data)
    with pytest.raises(ModelctlError, match="model 'bad:latest' is damaged") as caught:
        Model.load(store, "bad")
    assert caught.value.status == 500


@pytest.mark.parametrize(
    "annotations",
    [
        {media.ADAPTER_SCALE: "nan"},
        {media.ADAPTER_SCALE: "much"},
        {media.ADAPTER_INDEX: "first"},
        {media.ADAPTER_NAME: "science"},
    ],
)
def test_bad_annotations_are_damage_too(store: Store, ref: Ref, annotations: dict[str, str]) -> None:
    layers = list(ref.manifest.layers)
    at = next(i for i, layer in enumerate(layers) if layer.annotations.get(media.ADAPTER_NAME) == "math")
    layers[at] = replace(layers[at], annotations={**layers[at].annotations, **annotations})
    store.write("bad", replace(ref.manifest, layers=tuple(layers)))
    with pytest.raises(ModelctlError, match="is damaged"):
        Model.load(store, "bad")


def test_a_base_that_was_cut_short(store: Store, ref: Ref) -> None:
    (base,) = ref.manifest.of_type(media.MODEL)
    path = store.blob(base.digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelctlError, match=f"model '{ref.name.short}' is damaged: blob .* has {base.size - 1} bytes"):
        Model.of(store, ref)


def test_a_manifest_without_a_base(store: Store, ref: Ref) -> None:
    layers = tuple(layer for layer in ref.manifest.layers if layer.media_type != media.MODEL)
    store.write("bad", replace(ref.manifest, layers=layers))
    with pytest.raises(ModelctlError, match="0 base layers"):
        Model.load(store, "bad")


def test_the_config_must_be_an_object(store: Store, ref: Ref) -> None:
    put = store.put(json.dumps([1]).encode())
    store.write("bad", replace(ref.manifest, config=Layer(media.CONFIG, put.digest, put.size)))
    with pytest.raises(ModelctlError, match="is damaged"):
        Model.load(store, "bad")


def test_base_info_reads_the_header(model: Model) -> None:
    info = model.base_info()
    assert (info.architecture, info.context_length) == ("llama", 128)
    assert info.chat_template == "{{ messages[0].content }}"
