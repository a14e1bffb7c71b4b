from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.config import FOREVER, PORT, SETTINGS, Config, load, parse_address, parse_duration
from modelctl.errors import BadRequest, UsageError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11435"),
        ("1.2.3.4", "http://1.2.3.4:11435"),
        ("1.2.3.4:", "http://1.2.3.4:11435"),
        (":1234", "http://127.0.0.1:1234"),
        (":0", "http://127.0.0.1:0"),
        ("[::1]", "http://[::1]:11435"),
        ("::1", "http://[::1]:11435"),
        ("[::1]:1337", "http://[::1]:1337"),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11435"),
        ("'1.2.3.4'", "http://1.2.3.4:11435"),
        ("example.com:56789", "http://example.com:56789"),
        ("http://h", "http://h:80"),
        ("https://h", "https://h:443"),
        ("https://h:8000/ollama/", "https://h:8000/ollama"),
        ("h/path", "http://h:11435/path"),
        ("0.0.0.0", "http://127.0.0.1:11435"),
        ("[::]:80", "http://[::1]:80"),
    ],
)
def test_every_form_of_an_address(text: str, url: str) -> None:
    assert parse_address(text).url == url


def test_the_wildcard_is_what_the_daemon_binds() -> None:
    assert parse_address("0.0.0.0").host == "0.0.0.0"


@pytest.mark.parametrize("bad", [":66000", ":-1", ":x", "ftp://h", "a b", "1234", "h:1:2:g", "[::1", "http://[x]"])
def test_what_is_no_address_is_refused_and_not_replaced_by_the_default(bad: str) -> None:
    with pytest.raises(BadRequest):
        parse_address(bad)


def test_a_bare_number_is_taken_for_a_forgotten_colon() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_address("1234")
    assert caught.value.hint is not None
    assert ":1234" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1h2m3s", 3723.0),
        ("60", 60.0),
        (60, 60.0),
        (0.5, 0.5),
        ("1.5h", 5400.0),
        ("300ms", 0.3),
        ("0", 0.0),
        ("-0", 0.0),
        ("-1", FOREVER),
        ("-1m", FOREVER),
        (-5, FOREVER),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("bad", ["", " ", "???", "1d", "5 m", "m5", "1h2", True, None, float("nan"), [1]])
def test_what_is_no_duration(bad: object) -> None:
    with pytest.raises(BadRequest, match="duration"):
        parse_duration(bad)


@given(st.text(max_size=30))
def test_any_text_gives_an_address_and_a_duration_or_one_clear_error(text: str) -> None:
    for parse in (parse_address, parse_duration):
        try:
            parse(text)
        except BadRequest as error:
            assert error.message


def test_home_puts_everything_below_one_folder(tmp_path: Path) -> None:
    config = load({"MODELCTL_HOME": str(tmp_path)})
    for path in (config.home, config.cache_dir, config.log_path, config.config_path, config.store_root):
        assert path.is_relative_to(tmp_path)


def test_without_home_the_usual_folders_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELCTL_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    config = load({})
    assert config.home.is_relative_to(tmp_path)
    assert "modelctl" in config.log_path.parts


def test_a_home_that_cannot_be_found_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user id without a passwd entry: nothing may be created in a folder called `~`."""
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(UsageError) as caught:
        load({})
    assert "MODELCTL_HOME" in str(caught.value.hint)


def test_a_relative_home_in_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="MODELCTL_HOME"):
        load({"MODELCTL_HOME": "here"})
    assert load({"MODELCTL_HOME": str(tmp_path)}).home == tmp_path


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "host: 1.2.3.4\nkeep_alive: 1h\norigins: [http://a, http://b]\nnum_parallel: 2\n"
    )
    config = load({"MODELCTL_HOME": str(tmp_path), "MODELCTL_KEEP_ALIVE": "-1", "MODELCTL_MAX_QUEUE": "7"})
    assert (config.host, config.port) == ("1.2.3.4", PORT)
    assert config.origins == ("http://a", "http://b")
    assert (config.keep_alive, config.num_parallel, config.max_queue) == (FOREVER, 2, 7)


def test_blank_variables_are_as_good_as_unset(tmp_path: Path) -> None:
    blank = {f"MODELCTL_{key.upper()}": " " for key in SETTINGS}
    assert load({"MODELCTL_HOME": str(tmp_path), **blank}) == load({"MODELCTL_HOME": str(tmp_path)})


@pytest.mark.parametrize("key", sorted(set(SETTINGS) - {"origins"}))
def test_a_bad_value_names_its_variable(key: str, tmp_path: Path) -> None:
    variable = f"MODELCTL_{key.upper()}"
    with pytest.raises(UsageError, match=variable) as caught:
        load({"MODELCTL_HOME": str(tmp_path), variable: "-x y"})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep_alife: 5m", "keep_alive"),
        ("num_parallel: many", "num_parallel"),
        ("- a\n- b", "key: value"),
        ("host: [", "config.yaml"),
    ],
)
def test_a_bad_file_says_where_and_what(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load({"MODELCTL_HOME": str(tmp_path)})
    assert str(tmp_path / "config.yaml") in caught.value.message
    assert said in f"{caught.value.message} {caught.value.hint}"


def _config(home: Path) -> Config:
    return load({"MODELCTL_HOME": str(home)})


def test_the_last_model_is_remembered(tmp_path: Path) -> None:
    config = _config(tmp_path / "new")
    assert config.last_model() is None
    config.remember_model("tutor:latest")
    config.remember_model("other:v2")
    assert _config(tmp_path / "new").last_model() == "other:v2"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last_model"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_home_does_not_stop_a_command_that_is_done(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        _config(tmp_path).remember_model("tutor")
    finally:
        tmp_path.chmod(0o700)
