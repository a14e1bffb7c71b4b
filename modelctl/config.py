"""Settings: read once from `config.yaml` and the environment, passed on as one frozen `Config`.

`MODELCTL_HOME` puts every file below one folder; without it the system's usual places are taken (platformdirs). Each
key of `SETTINGS` may stand in `config.yaml` or, in capitals after `MODELCTL_`, in the environment, which wins. The
names are Ollama's, so that `OLLAMA_X` becomes `MODELCTL_X`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from modelctl.errors import BadRequest, UsageError

PORT = 11435  # one above Ollama's, so that both can run
FOREVER = -1.0
LOCAL = ("localhost", "0.0.0.0", "::", "::1")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_HOST = re.compile(r"[a-zA-Z0-9_.\-]*|[0-9a-fA-F:.]+(%\w+)?")


class Address(NamedTuple):
    """Where the daemon listens and the client calls: `scheme://host:port/path`. Port 0: any free one."""

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = PORT
    path: str = ""

    @property
    def url(self) -> str:
        """What a client connects to: the wildcard addresses mean this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether a daemon of this machine can listen there."""
        return self.scheme == "http" and (self.host in LOCAL or self.host.startswith("127."))


@dataclass(frozen=True)
class Config:
    """Everything that can be set from outside. Durations are seconds; a negative one means for ever."""

    home: Path
    cache_dir: Path
    log_path: Path
    config_path: Path
    address: Address = field(default_factory=Address)
    keep_alive: float = 300.0
    load_timeout: float = 300.0
    num_parallel: int = 8
    max_loaded: int = 3
    max_queue: int = 512
    n_ctx: int = 4096
    deterministic: bool = False
    mixed_batches: str = "auto"
    mixed_rank: int = 256
    origins: tuple[str, ...] = ()  # allowed besides the local ones

    @property
    def host(self) -> str:
        return self.address.host

    @property
    def port(self) -> int:
        return self.address.port

    @property
    def store_root(self) -> Path:
        return self.home / "store"

    @property
    def history_path(self) -> Path:
        return self.home / "history"

    def last_model(self) -> str | None:
        """The model created or used last, for commands that name none."""
        try:
            return (self.home / "last_model").read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def remember_model(self, name: str) -> None:
        """Best effort: a read-only home must not fail a command that has done its work."""
        with contextlib.suppress(OSError):
            self.home.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.home, prefix=".last_model")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(name + "\n")
            Path(temporary).replace(self.home / "last_model")


def parse_address(text: str) -> Address:
    """`host`, `host:port`, `:port`, `[::1]:port`, `http://host/path`, ... as an Address; blank is the default one.

    A missing host is 127.0.0.1, never every interface: opening the daemon to the network takes an explicit 0.0.0.0.
    Raises `BadRequest`.
    """
    text = text.strip().strip("\"'").strip()
    scheme, sign, rest = text.partition("://")
    if not sign:
        scheme, rest = "", text
    if scheme not in ("", "http", "https"):
        raise BadRequest(f"expected http or https, got {scheme!r}")
    authority, slash, path = rest.partition("/")
    host, port = _split_port(authority)
    if not _HOST.fullmatch(host):
        raise BadRequest(f"{host!r} is not a host name or address")
    if host.isdecimal():
        raise BadRequest(f"{host!r} is not a host name", hint=f"for a port on this machine write :{host}")
    default = {"": PORT, "http": 80, "https": 443}[scheme]
    return Address(scheme or "http", host or "127.0.0.1", default if port is None else port, (slash + path).rstrip("/"))


def _split_port(authority: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", authority)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
        if ":" not in host:
            raise BadRequest(f"expected an IPv6 address in the brackets, got {host!r}")
    elif authority.count(":") == 1:
        host, port = authority.split(":")
    else:  # a bare name, or an IPv6 address without brackets
        return authority, None
    if not port:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise BadRequest(f"the port must be a number from 0 to 65535, not {port!r}")
    return host, int(port)


def parse_duration(value: object) -> float:
    """Seconds from a number, a string of one ("60"), or Go's form ("1h2m3s", "300ms"); negative ones are `FOREVER`.
    Raises `BadRequest`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return FOREVER if value < 0 else float(value)
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", text):
        return parse_duration(float(text))
    body = text.removeprefix("-").removeprefix("+")
    parts = _DURATION.findall(body)
    if not parts or "".join(n + unit for n, unit in parts) != body:
        raise BadRequest(f"expected a duration, got {value!r}", hint="for example 5m, 1h30m, 0, or -1 for ever")
    seconds = sum(float(n) * _UNITS[unit] for n, unit in parts)
    return FOREVER if text.startswith("-") and seconds else seconds


def _whole_number(value: object) -> int:
    text = str(value).strip()
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise BadRequest(f"expected a whole number above 0, got {value!r}")
    return int(text)


def _switch(value: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    text = str(value).strip().lower()
    if text not in words:
        raise BadRequest(f"expected 1 or 0, got {value!r}")
    return words[text]


def _mixing(value: object) -> str:
    text = str(value).strip().lower()
    if text not in ("auto", "always", "never"):
        raise BadRequest(f"expected auto, always or never, got {value!r}")
    return text


def _address(value: object) -> Address:
    return parse_address(str(value))


def _origins(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list) else str(value).split(",")
    return tuple(str(item).strip() for item in items if str(item).strip())


class Setting(NamedTuple):
    field: str
    parse: Callable[[object], Any]
    help: str


SETTINGS: Mapping[str, Setting] = {
    "host": Setting("address", _address, "address of the daemon: 127.0.0.1:11435, :8080, [::1], https://host/path"),
    "keep_alive": Setting("keep_alive", parse_duration, "how long an idle model stays loaded: 5m, 0, -1 for ever"),
    "load_timeout": Setting("load_timeout", parse_duration, "how long a model may take to load"),
    "num_parallel": Setting("num_parallel", _whole_number, "answers that one base generates at once"),
    "max_loaded_models": Setting("max_loaded", _whole_number, "bases in memory at once"),
    "max_queue": Setting("max_queue", _whole_number, "requests that may wait"),
    "context_length": Setting(
        "n_ctx", _whole_number, "tokens of context for one answer, where the model has no num_ctx"
    ),
    "deterministic": Setting("deterministic", _switch, "1: the same seed gives the same bits in any company; slower"),
    "mixed_batches": Setting("mixed_batches", _mixing, "different mixes in one batch: auto, always or never"),
    "mixed_rank": Setting("mixed_rank", _whole_number, "adapters of at most this rank in sum share a batch"),
    "origins": Setting("origins", _origins, "web origins allowed besides the local ones, with commas between"),
}


def load(environ: Mapping[str, str] | None = None) -> Config:
    """The settings of this process. Raises `UsageError` that names the file or variable at fault."""
    env = os.environ if environ is None else environ
    folders = _folders(env)
    values = _from_file(folders["config_path"])
    for key, setting in SETTINGS.items():
        variable = f"MODELCTL_{key.upper()}"
        if env.get(variable, "").strip():
            values[setting.field] = _parsed(setting, env[variable], variable)
    return Config(**folders, **values)


def _parsed(setting: Setting, value: object, where: str) -> Any:
    try:
        return setting.parse(value)
    except BadRequest as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from None


def _folders(env: Mapping[str, str]) -> dict[str, Any]:
    if env.get("MODELCTL_HOME"):
        home = _absolute(Path(env["MODELCTL_HOME"]))
        return {
            "home": home,
            "cache_dir": home / "cache",
            "log_path": home / "logs" / "daemon.log",
            "config_path": home / "config.yaml",
        }
    try:
        folders = _usual_folders()
    except RuntimeError:  # newer platformdirs; older ones return `~/...` as it stands
        folders = {}
    if not folders or not all(path.is_absolute() for path in folders.values()):  # no HOME, and no passwd entry
        raise UsageError("your home folder cannot be found", hint="set HOME, or MODELCTL_HOME to a folder for modelctl")
    return folders


def _usual_folders() -> dict[str, Path]:
    import platformdirs

    return {
        "home": platformdirs.user_data_path("modelctl", appauthor=False),
        "cache_dir": platformdirs.user_cache_path("modelctl", appauthor=False),
        "log_path": platformdirs.user_log_path("modelctl", appauthor=False) / "daemon.log",
        "config_path": platformdirs.user_config_path("modelctl", appauthor=False) / "config.yaml",
    }


def _absolute(path: Path) -> Path:
    try:
        return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - keeps symlinks, folds `..`
    except (RuntimeError, OSError) as error:  # unknown ~user; the working folder is gone
        raise UsageError(f"MODELCTL_HOME: {path} cannot be resolved: {error}", hint="give an absolute path") from None


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected lines of `key: value`")
    for key in data:
        if key not in SETTINGS:
            near = difflib.get_close_matches(str(key), SETTINGS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(SETTINGS)}"
            raise UsageError(f"{path}: unknown setting {key!r}", hint=hint)
    known = {key: SETTINGS[key] for key in data}
    return {known[key].field: _parsed(known[key], value, f"{path}: {key}") for key, value in data.items()}
