"""A slice of scripts/store_faults.py: faults injected into system calls, and the order of those calls.

The whole of it takes most of an hour and runs by hand: `python scripts/store_faults.py points`, `... soak`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import store_faults  # noqa: E402


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


TRACED = pytest.mark.skipif(not _can_trace(), reason="strace is not here or may not trace")


@TRACED
def test_a_slice_of_the_faults_does_no_harm(tmp_path: Path) -> None:
    said: list[str] = []
    n_tried, n_violations = store_faults.try_points(["update", "rm"], 131, tmp_path, said.append)
    assert n_violations == 0, "\n".join(said)
    assert n_tried >= 6


def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    assert store_faults.soak(2, tmp_path, n_workers=4, say=lambda text: None) == []


@TRACED
@pytest.mark.parametrize("operation", ["create", "update", "import", "ollama", "copy", "pin"])
def test_every_rename_is_synced_before_and_after(tmp_path: Path, operation: str) -> None:
    """A crash of the machine, not of the process: the order on disk is the order of the syncs."""
    store_faults.prepare(tmp_path / "work")
    trace = tmp_path / "trace"
    done = store_faults.strace(tmp_path / "work", operation, trace, "-e", "trace=fsync,rename,renameat,renameat2")
    assert done.returncode == 0, done.stderr
    calls = trace.read_text()
    store = re.escape(str(tmp_path / "work" / "store"))
    renames = list(re.finditer(rf'rename\w*\((?:[^"]*, )?"({store}[^"]+)",(?: [^"]*,)? "({store}[^"]+)"', calls))
    assert renames
    for rename in renames:
        staged, target = rename.groups()
        synced = re.search(rf"fsync\(\d+<{re.escape(staged)}>(\) = 0| <unfinished)", calls[: rename.start()])
        assert synced, f"{target} was renamed before its bytes were synced"
        assert f"<{Path(target).parent}>) = 0" in calls[rename.end() :], f"the folder of {target} was not synced after"
    targets = [Path(rename[2]).relative_to(tmp_path / "work" / "store").parts[0] for rename in renames]
    assert set(targets) <= {"blobs", "refs", "pins"}
    assert "blobs" not in targets[targets.index(targets[-1]) :], "the name comes after every blob"


def test_the_checker_sees_what_it_looks_for(tmp_path: Path) -> None:
    """Each kind of damage, made by hand."""
    store_faults.prepare(tmp_path / "work")
    root = tmp_path / "work" / "store"
    assert store_faults.look(root).problems == []
    refs = root / "refs" / "registry.ollama.ai" / "library"
    (refs / "keep" / "latest").write_bytes(b"")
    assert any("torn" in problem for problem in store_faults.look(root).problems)
    store_faults._fresh(tmp_path / "work", tmp_path / "again")
    for blob in (root / "blobs").iterdir():
        blob.chmod(0o644)
        blob.write_bytes(b"not it")
    assert sum(problem.startswith("I1") for problem in store_faults.look(root).problems) > 3
    for blob in (root / "blobs").iterdir():
        blob.unlink()
    assert any(problem.startswith("I2") for problem in store_faults.look(root).problems)
