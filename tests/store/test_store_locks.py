"""Writers, gc and the dead: who waits for whom, and what the waiting are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelctl.store import Locked, Store, locks
from modelctl.store.collect import collect

HOLD = """
import sys, time
from pathlib import Path
from modelctl.store import Store
store = Store(Path(sys.argv[2]))
with store.{hold}():
    {act}
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(store: Store, hold: str, act: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the store until the end of the block."""
    code = HOLD.format(hold=hold, act=act)
    with subprocess.Popen(
        [sys.executable, "-c", code, "create", str(store.root)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            child.kill()


def test_gc_does_not_run_beside_a_writer_and_says_who_it_is(store: Store) -> None:
    heard: list[str] = []
    patient = Store(store.root, patience=1.2, waiting=heard.append)
    with held(store, "writing") as writer:
        with pytest.raises(Locked) as caught:
            collect(patient, grace=0)
        assert f"process {writer.pid}" in caught.value.message
        assert "since " in caught.value.message
        assert "waited 1 s" in (caught.value.hint or "")
        assert heard == [f"waiting for {caught.value.message.removeprefix('the store is in use by ')}"]
    assert collect(store, grace=0).blobs == []


def test_a_writer_does_not_start_beside_a_gc_and_says_who_it_is(store: Store) -> None:
    with held(store, "collecting") as gc:
        with pytest.raises(Locked, match=f"process {gc.pid}"):
            store.put(b"data")
        assert store.list() == []  # readers wait for nobody
    assert store.put(b"data").size == 4


def test_writers_do_not_wait_for_each_other(store: Store) -> None:
    with held(store, "writing"), held(store, "reading"):
        assert store.put(b"data").size == 4


def test_newcomers_queue_behind_a_waiting_gc(store: Store) -> None:
    """Or writers that overlap could keep it out for ever."""
    waiting = threading.Event()
    collected: list[object] = []
    patient = Store(store.root, patience=30, waiting=lambda message: waiting.set())
    with held(store, "writing") as writer:
        gc = threading.Thread(target=lambda: collected.append(collect(patient, grace=0)))
        gc.start()
        assert waiting.wait(10)
        with pytest.raises(Locked):
            store.put(b"newcomer")
        writer.kill()
        gc.join(10)
    assert len(collected) == 1


def test_what_a_killed_writer_staged_is_swept_by_the_next(store: Store) -> None:
    with held(
        store, "writing", act='(store.staging / "x").mkdir(); store._writing._session.path().write_bytes(b"half")'
    ) as child:
        (store.staging / "x").rmdir()
        sessions = list(store.staging.iterdir())
        assert len(sessions) == 1
        store.put(b"one writer leaves the other's files alone")
        assert list(store.staging.iterdir()) == sessions
        child.send_signal(signal.SIGKILL)
        child.wait()
    store.put(b"the next takes them away")
    assert list(store.staging.iterdir()) == []


def test_calls_within_writing_join_in_from_any_thread(store: Store, build) -> None:
    with store.writing() as outer:
        with store.writing() as inner:
            assert inner is outer
        threads = [threading.Thread(target=store.put, args=(os.urandom(10),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(Locked):
            collect(Store(store.root, patience=0), grace=0)
        store.write("tutor", build(b"base"))
    assert list(store.staging.iterdir()) == []
    assert len(collect(store, grace=0).blobs) == 8


def test_a_failure_frees_the_store(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.writing():
        raise ZeroDivisionError
    collect(store, grace=0)


def test_foreign_entries_in_staging_are_not_sessions(store: Store, tmp_path: Path) -> None:
    store.put(b"data")
    (store.staging / "1.2.x.00").symlink_to(tmp_path)
    (store.staging / "note.txt").write_text("hello")
    assert locks.dead(store.staging) == []
    collect(store, grace=0)
    assert list(store.staging.iterdir()) == []
    assert tmp_path.is_dir()
