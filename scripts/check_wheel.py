"""Prove that a wheel works without the checkout: `check_wheel.py FILE.whl` unpacks it with pip and runs it from there.

Only its dependencies are taken from the environment of this Python.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("parser", "store")  # links in the checkout, which a wheel must hold as files
WHERE = "from modelctl import parser, store; print(parser.__file__, store.__file__, store.__path__[0])"


def main(wheel: Path) -> None:
    check_files(wheel)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", site, wheel.resolve()], check=True)
        (Path(folder) / "Modelfile").write_text("FROM ./base.gguf\nADAPTER ./math.gguf AS math SCALE 0.8\n")
        check_origin(site)
        for args in (["--help"], ["list"], ["lint"], ["create", "--help"]):
            run(site, "-m", "modelctl", *args)
    print(f"{wheel.name}: works without the checkout")


def check_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    wanted = {f"modelctl/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    missing = sorted(wanted - {name for name, mode in files.items() if not stat.S_ISLNK(mode)})
    strange = sorted(name for name in files if not name.startswith(("modelctl/", "modelctl-")))
    if missing or strange:
        sys.exit(f"{wheel.name}: missing {missing}, out of place {strange}")


def check_origin(site: Path) -> None:
    found = run(site, "-c", WHERE).split()
    if not all(Path(path).is_relative_to(site) for path in found):
        sys.exit(f"imported from elsewhere: {found}")


def run(site: Path, *args: str) -> str:
    """What Python prints with `site` before everything else on its path, far from the checkout."""
    env = {**os.environ, "PYTHONPATH": str(site), "MODELCTL_HOME": str(site.parent / "home")}
    done = subprocess.run(
        [sys.executable, *args], cwd=site.parent, env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(args)}: exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
