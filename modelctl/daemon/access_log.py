"""The log's line for each request, without the machinery of `logging`, which takes as long as a short request does."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any


class AccessLog(logging.Logger):
    """What uvicorn wants: a logger, of which it calls `info`. Its lines look like the others in the log."""

    def info(self, msg: object, *args: object, **_: Any) -> None:
        now = time.time()
        with suppress(OSError):  # a full disk under the log is no reason to stop
            sys.stderr.write(f"{_local(int(now))},{int(now * 1000) % 1000:03d} INFO {str(msg) % args}\n")


@lru_cache(maxsize=1)
def _local(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
