"""Where the daemon listens, and where it will not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from modelctl import config
from modelctl.config import Config
from modelctl.daemon import serve
from modelctl.daemon.server import bind
from modelctl.errors import ModelctlError, UsageError
from tests.daemon.conftest import Daemon


def configured(home: Path, host: str) -> Config:
    return config.load({"MODELCTL_HOME": str(home), "MODELCTL_HOST": host})


def test_a_taken_port(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ModelctlError, match=rf"127.0.0.1:{port} is already in use") as caught:
            serve(configured(home, f"127.0.0.1:{port}"))
    assert caught.value.exit_code == 1 and "MODELCTL_HOST" in (caught.value.hint or "")
    assert not (home / "store").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]:0", "192.0.2.1:0"])
def test_the_network_is_refused(home: Path, host: str) -> None:
    with pytest.raises(UsageError, match="refusing to listen") as caught:
        bind(configured(home, host))
    assert caught.value.exit_code == 2 and "127.0.0.1" in (caught.value.hint or "")


@pytest.mark.parametrize("host", ["https://localhost", "http://localhost:1/path"])
def test_what_only_a_proxy_can_serve(home: Path, host: str) -> None:
    with pytest.raises(UsageError, match="cannot serve"):
        bind(configured(home, host))


def test_a_host_that_is_none(home: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on no-such-host\.invalid"):
        bind(configured(home, "no-such-host.invalid:0"))


@pytest.mark.parametrize("host", ["localhost:0", "127.0.0.1:0", "127.0.0.2:0"])
def test_loopback(home: Path, host: str) -> None:
    with bind(configured(home, host)) as listener:
        assert listener.getsockname()[0].startswith("127.")


def test_the_port_is_free_right_after_a_kill(own_daemon: Callable[..., Daemon]) -> None:
    first = own_daemon()
    assert first.get("/api/version").ok
    first.process.kill()
    first.process.wait()
    second = own_daemon(MODELCTL_HOST=f"127.0.0.1:{first.port}")
    assert second.port == first.port and second.get("/api/version").ok


def test_the_address_it_is_bound_to_is_a_host_too(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon(MODELCTL_HOST="127.0.0.2:0")
    for host, status in (("127.0.0.2", 200), ("localhost", 200), ("127.0.0.3", 403)):
        with socket.create_connection(("127.0.0.2", daemon.port), timeout=60) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}:1\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(100).startswith(f"HTTP/1.1 {status}".encode())
