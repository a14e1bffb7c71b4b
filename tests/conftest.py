"""Shared by all tests: the real base, the three real adapters, and a home that is never the user's own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from fetch_base import fetch  # noqa: E402

# Where tests run in the background, Ctrl-C may be ignored, and every process that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ADAPTERS = ROOT / "examples" / "adapters"
ADAPTER_NAMES = ("pirate", "json", "shout")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh MODELCTL_HOME, so that no test can touch the user's models or daemon."""
    folder = tmp_path / "modelctl-home"
    monkeypatch.setenv("MODELCTL_HOME", str(folder))
    monkeypatch.delenv("MODELCTL_HOST", raising=False)
    return folder


@pytest.fixture(scope="session")
def base() -> Path:
    """SmolLM2-135M-Instruct Q4_1."""
    return fetch()


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three example adapters as GGUF files, by name."""
    from modelctl.adapters import prepare
    from modelctl.gguf_check import read_header

    header = read_header(base)
    folders = {name: tmp_path_factory.mktemp(name) for name in ADAPTER_NAMES}
    return {name: prepare(ADAPTERS / name, header, folder)[0] for name, folder in folders.items()}
