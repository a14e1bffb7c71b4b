"""What the daemon starts: `python -m modelctl.daemon.leash --fd N`, a runner that goes when its daemon goes.

The runner sees by itself that the socket ended, but only when it reads, and not while it loads, which takes minutes for
a large base on a slow disk. A killed daemon cannot tell it; the kernel can, by hanging up the socket.
"""

from __future__ import annotations

import os
import select
import sys
import threading


def main() -> int:
    fd = int(sys.argv[sys.argv.index("--fd") + 1])
    threading.Thread(target=_end_with, args=(fd,), name="leash", daemon=True).start()
    from modelctl.runner.__main__ import main as run

    return run()


def _end_with(fd: int) -> None:
    """Ends this process, whatever its other threads are at, when the other side of the socket `fd` is closed."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always reported; what comes in is the runner's to read
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
