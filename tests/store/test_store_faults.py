"""A slice of scripts/store_faults.py: faults injected into system calls, and the order of those calls.

The whole of it takes most of an hour and runs by hand: `points`, `disks` and `soak`.
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

import store_checks  # noqa: E402
import store_faults  # noqa: E402
import store_soak  # noqa: E402


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


def _can_mount() -> bool:
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("prlimit") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


TRACED = pytest.mark.skipif(not _can_trace(), reason="strace is not here or may not trace")
MOUNTED = pytest.mark.skipif(not _can_mount(), reason="needs prlimit, and unshare that may mount")


@TRACED
def test_a_slice_of_the_faults_does_no_harm(tmp_path: Path) -> None:
    said: list[str] = []
    n_tried, n_violations = store_faults.try_points(["update", "rm", "verify"], 170, tmp_path, said.append)
    assert n_violations == 0, "\n".join(said)
    assert n_tried >= 6


@TRACED
@pytest.mark.parametrize("fault", store_faults.FAULTS)
def test_a_fault_hits_the_call_it_is_meant_for(tmp_path: Path, fault: str) -> None:
    """Or a thousand points without a violation would prove nothing."""
    store_faults.prepare(tmp_path / "template")
    trial = store_faults.Trial(tmp_path / "template", tmp_path / "work")
    point = next(
        point for point in store_faults.points(trial, "rm") if (point.syscall, point.fault) == ("unlink", fault)
    )
    done = store_faults.try_point(trial, "rm", point)
    assert done is not None
    assert done.returncode == {"KILL": -9, "EIO": 1, "ENOSPC": 1}[fault]
    assert trial.n_violations == 0


@MOUNTED
def test_a_slice_of_the_full_disks_does_no_harm() -> None:
    step = [sys.executable, str(ROOT / "scripts" / "store_faults.py"), "disks", "--ops", "update,rm", "--every", "4"]
    done = subprocess.run(step, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) points tried, 0 violations", done.stdout)[0]) > 15


def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    assert store_soak.soak(2, tmp_path, n_workers=4, say=lambda text: None) == []


@TRACED
def test_every_rename_is_synced_before_and_after(tmp_path: Path) -> None:
    said: list[str] = []
    n_renames, n_violations = store_faults.try_order(list(store_faults.OPERATIONS), tmp_path, said.append)
    assert n_violations == 0, "\n".join(said)
    assert n_renames >= 18


GOOD_ORDER = """
1 mkdir("/s/staging/x", 0777) = 0
1 openat(AT_FDCWD</>, "/s/staging/x/0", O_RDWR|O_CREAT) = 3</s/staging/x/0>
1 pwrite64(3</s/staging/x/0>, "blob", 4, 0) = 4
1 fsync(3</s/staging/x/0>) = 0
1 rename("/s/staging/x/0", "/s/blobs/sha256-1") = 0
1 fsync(3</s/blobs>) = 0
1 write(3</s/staging/x/1>, "name", 4) = 4
1 fsync(3</s/staging/x/1>) = 0
1 rename("/s/staging/x/1", "/s/refs/tutor") = 0
1 fsync(3</s/refs>) = 0
1 unlink("/s/blobs/sha256-2") = 0
"""


@pytest.mark.parametrize(
    ("left_out", "problem"),
    [
        ("nothing", ""),
        ("fsync(3</s/staging/x/0>)", "sha256-1 was renamed into its place before its bytes were synced"),
        ("fsync(3</s/blobs>)", "when /s/refs/tutor changed, /s/blobs was not synced"),
        ("fsync(3</s/staging/x/1>)", "tutor was renamed into its place before its bytes were synced"),
        ("fsync(3</s/refs>)", "when /s/blobs/sha256-2 was removed, /s/refs was not synced"),
    ],
)
def test_a_sync_that_is_missing_is_missed(left_out: str, problem: str) -> None:
    order = store_checks.Order(Path("/s"))
    for line in GOOD_ORDER.splitlines():
        if left_out not in line:
            order.feed(line)
    problems = order.end()
    assert order.n_renames == 2
    assert problem in " ".join(problems)
    assert bool(problems) == bool(problem)


def test_the_checker_sees_what_it_looks_for(tmp_path: Path) -> None:
    """Each kind of damage, made by hand."""
    store_faults.prepare(tmp_path / "work")
    root = tmp_path / "work" / "store"
    assert store_checks.look(root).problems == []
    refs = root / "refs" / "registry.ollama.ai" / "library"
    (refs / "keep" / "latest").write_bytes(b"")
    assert any("torn" in problem for problem in store_checks.look(root).problems)
    for blob in (root / "blobs").iterdir():
        blob.chmod(0o644)
        blob.write_bytes(b"not it")
    assert sum(problem.startswith("I1") for problem in store_checks.look(root).problems) > 3
    for blob in (root / "blobs").iterdir():
        blob.unlink()
    assert any(problem.startswith("I2") for problem in store_checks.look(root).problems)
