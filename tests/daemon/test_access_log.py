"""The log's lines for requests, beside those that `logging` writes."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest

from modelctl.daemon import server
from modelctl.daemon.access_log import AccessLog


def test_its_lines_look_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)  # so that it is put back
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        server._configure_logging()
        logging.getLogger("modelctl.daemon").info("%s listens", "modelctl")
        AccessLog("access").info('%s - "%s %s"', "127.0.0.1:1", "GET", "/api/tags")
    finally:
        root.handlers[:], root.level = before, level
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO "
    first, second = log.getvalue().splitlines()
    assert re.fullmatch(stamp + "modelctl listens", first)
    assert re.fullmatch(stamp + '127.0.0.1:1 - "GET /api/tags"', second)


def test_a_full_disk_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    AccessLog("access").info("GET %s", "/api/tags")
