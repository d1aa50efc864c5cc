"""Claims: of workers that share work, each share has one; the dead leave theirs to the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

from prefdata.storage.leases import WorkLeases


def test_a_share_is_taken_once(tmp_path: Path) -> None:
    with WorkLeases(tmp_path) as one, WorkLeases(tmp_path) as two:
        assert one.acquire("a") == "free"
        assert one.acquire("a") == "mine"
        assert two.acquire("a") == "held"
        assert two.acquire("b") == "free"
        assert two.company


def test_a_worker_that_ended_leaves_its_shares_done(tmp_path: Path) -> None:
    with WorkLeases(tmp_path) as stays:
        with WorkLeases(tmp_path) as goes:
            goes.acquire("a")
        assert stays.acquire("a") == "finished"
        assert stays.acquire("a", again=True) == "left"
        assert stays.acquire("a") == "mine"


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with WorkLeases(tmp_path) as one, WorkLeases(tmp_path) as two:
        one.acquire("a")
        two.acquire("b")
    assert list(tmp_path.iterdir()) == []


def test_a_silent_worker_is_dead(tmp_path: Path, monkeypatch) -> None:
    with WorkLeases(tmp_path, expires=60) as one, WorkLeases(tmp_path, expires=60) as two:
        one.acquire("a")
        assert two.others() == [one._me]
        monkeypatch.setattr(time, "monotonic", lambda later=time.monotonic() + 61: later)
        assert two.others() == []
        assert two.acquire("a") == "left"
        assert one.acquire("a") == "mine"  # it took the first generation; what both do is kept once


def _works(folder: Path, took, meet) -> None:
    with WorkLeases(folder) as claims:
        meet.wait()
        for number in range(50):
            if claims.acquire(f"share-{number}") == "free":
                took.put(number)
                time.sleep(0.001)
        meet.wait()  # who leaves last takes the claims along


def test_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    took, meet = context.Queue(), context.Barrier(3, timeout=600)
    workers = [context.Process(target=_works, args=(tmp_path, took, meet)) for _ in range(3)]
    for worker in workers:
        worker.start()
    numbers = [took.get(timeout=600) for _ in range(50)]
    for worker in workers:
        worker.join(600)
    assert sorted(numbers) == list(range(50))
    assert took.empty()


def _holds(folder: Path, ready) -> None:
    with WorkLeases(folder) as claims:
        claims.acquire("a")
        ready.set()
        time.sleep(600)


def test_a_killed_worker_is_dead_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=_holds, args=(tmp_path, ready))
    worker.start()
    assert ready.wait(60)
    with WorkLeases(tmp_path) as claims:
        assert claims.acquire("a") == "held"
        assert len(claims.others()) == 1
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert claims.acquire("a") == "left"
        assert claims.others() == []


def test_one_ends_the_work(tmp_path: Path) -> None:
    with WorkLeases(tmp_path) as one, WorkLeases(tmp_path) as two:
        assert not one.last()  # two still works, and will end it
        assert two.last()
    with WorkLeases(tmp_path) as alone:
        assert alone.last()


def test_a_folder_that_another_cleared(tmp_path: Path) -> None:
    with WorkLeases(tmp_path) as one:
        for path in one.folder.iterdir():
            path.unlink()
        one.folder.rmdir()
        assert one.acquire("a") == "free"
        assert one.acquire("a") == "mine"
