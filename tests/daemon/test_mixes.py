from __future__ import annotations

from dataclasses import replace

import pytest

from modelctl.daemon.mixes import Mixes, chosen
from modelctl.errors import BadRequest, NotFound
from modelctl.model import Model
from tests.daemon.test_runners import make_model


@pytest.fixture
def tutor() -> Model:
    model = make_model("tutor", adapters=("math", "science"))
    math, science = model.adapters
    return replace(model, adapters=(math, replace(science, scale=0.5)))


def test_listed_change_and_unlisted_keep_theirs_or_what_the_start_says(tutor: Model) -> None:
    mixes = Mixes()
    assert mixes.current(tutor) == {"math": 0.0, "science": 0.5}
    mixes.change(tutor, {"0": 1.0})
    assert mixes.change(tutor, {"science": -2}) == {"math": 1.0, "science": -2.0}
    assert mixes.current(tutor) == {"math": 1.0, "science": -2.0}
    assert mixes.change(tutor, {"math": 3}, start=tutor.default_scales()) == {"math": 3.0, "science": 0.5}
    assert mixes.change(tutor, {"math": 2}, start={}) == {"math": 2.0, "science": 0.0}


def test_a_refused_change_changes_nothing(tutor: Model) -> None:
    mixes = Mixes()
    mixes.change(tutor, {"math": 1.0})
    for bad in ({"math": 0.1, "art": 1.0}, {"math": 0.1, "science": float("nan")}, {"math": 0.1, "0": 0.2}):
        with pytest.raises((BadRequest, NotFound)):
            mixes.change(tutor, bad)
        assert mixes.current(tutor) == {"math": 1.0, "science": 0.5}


def test_what_is_returned_is_a_copy(tutor: Model) -> None:
    mixes = Mixes()
    mixes.change(tutor, {"math": 1.0})["math"] = 7.0
    mixes.current(tutor)["math"] = 8.0
    assert mixes.current(tutor)["math"] == 1.0


def test_other_adapters_or_defaults_under_the_name_start_afresh(tutor: Model) -> None:
    mixes = Mixes()
    mixes.change(tutor, {"math": 1.0})
    other = replace(tutor, adapters=tutor.adapters[:1])
    assert mixes.current(other) == {"math": 0.0}
    louder = replace(tutor, adapters=(replace(tutor.adapters[0], scale=0.9), tutor.adapters[1]))
    assert mixes.current(louder) == {"math": 0.9, "science": 0.5}
    copied = replace(tutor, name="copy:latest")
    assert mixes.current(copied) == {"math": 0.0, "science": 0.5}
    assert mixes.current(tutor)["math"] == 1.0
    mixes.forget(tutor.name)
    assert mixes.current(tutor)["math"] == 0.0


def test_a_request_with_its_own_mix_turns_the_unlisted_off(tutor: Model) -> None:
    current = {"math": 1.0, "science": 0.5}
    assert chosen(tutor, current, None, None) == current
    assert chosen(tutor, current, {"science": 0.3}, None) == pytest.approx({"math": 0.0, "science": 0.3})
    assert chosen(tutor, current, {}, None) == {"math": 0.0, "science": 0.0}
    assert chosen(tutor, current, {"science": 0.3}, {"math": 2}) == {"math": 2.0, "science": 0.0}
    assert chosen(tutor, current, {"science": 0.3}, []) == {"math": 0.0, "science": 0.0}
