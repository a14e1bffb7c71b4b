"""`make transcript`: run the demo in a home of its own and put what it prints into README.md."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
WIDTH = 96  # columns
_BLOCK = re.compile(r"(?<=<!-- demo -->\n```text\n).*?(?=```\n<!-- /demo -->)", re.DOTALL)


def demo(environment: dict[str, str]) -> str:
    """What the demo prints, notes included. Leaves its daemon running."""
    env = {**os.environ, **environment, "COLUMNS": str(WIDTH)}
    command = [sys.executable, str(ROOT / "examples" / "demo.py")]
    return subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout


def own_environment(home: Path) -> dict[str, str]:
    """A home, and an address that is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return {"MODELCTL_HOME": str(home), "MODELCTL_HOST": f"127.0.0.1:{listener.getsockname()[1]}"}


def usual(printed: str, environment: dict[str, str]) -> str:
    """The same as it looks where neither variable is set."""
    lines = [line.rstrip() for line in printed.splitlines() if not line.startswith("  export MODELCTL_")]
    text = "\n".join(lines).strip("\n") + "\n"
    text = text.replace(environment["MODELCTL_HOME"], "~/.local/share/modelctl")
    return text.replace(environment["MODELCTL_HOST"], "127.0.0.1:11435")


def recorded() -> str:
    """What README.md shows."""
    found = _BLOCK.search(README.read_text(encoding="utf-8"))
    if not found:
        sys.exit("README.md has no block between <!-- demo --> and <!-- /demo -->")
    return found[0]


def main() -> None:
    recorded()
    with tempfile.TemporaryDirectory() as home:
        environment = own_environment(Path(home))
        try:
            text = usual(demo(environment), environment)
        finally:
            subprocess.run([sys.executable, "-m", "modelctl", "stop"], env={**os.environ, **environment}, check=False)
    README.write_text(_BLOCK.sub(lambda _: text, README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
