"""Work in threads, ahead of the caller."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from prefdata.parallel import as_completed, prefetch_map


def test_the_next_is_worked_on_while_this_one_is_used() -> None:
    begun = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            begun.set()
        return -number

    stream = prefetch_map(range(4), work)
    assert next(stream) == 0
    assert begun.wait(5)
    assert list(stream) == [-1, -2, -3]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_whoever_is_done_first(workers: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        return number

    assert list(prefetch_map(range(30), work, workers)) == list(range(30))


@pytest.mark.parametrize(("workers", "most", "pulled"), [(1, None, 2), (3, None, 4), (2, 6, 7)])
def test_no_more_is_pulled_than_is_asked_for(workers: int, most: int | None, pulled: int) -> None:
    seen: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            seen.append(number)
            yield number

    stream = prefetch_map(endless(), str, workers, most=most)
    assert next(stream) == "0"
    assert len(seen) == pulled
    stream.close()  # type: ignore[attr-defined]


def test_workers_work_at_a_time() -> None:
    """Each waits for the other: one after the other they would never be done."""
    both = threading.Barrier(2)
    assert sorted(prefetch_map([0, 1], lambda _: both.wait(10), 2)) == [0, 1]


def test_what_fails_in_a_thread_is_raised_here_and_nothing_more_begins() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        done.append(number)
        if number == 1:
            raise ZeroDivisionError
        time.sleep(0.05)

    with pytest.raises(ZeroDivisionError):
        list(prefetch_map(range(100), work, 2))
    assert max(done) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefdata-ahead")]


def test_a_caller_that_leaves_leaves_nothing_running() -> None:
    stream = prefetch_map(itertools.count(), str, 2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefdata-ahead")]


def test_the_first_to_be_done_comes_first() -> None:
    released = threading.Event()

    def work(number: int, left: threading.Event) -> int:
        if number == 0:
            released.wait(10)
        return number

    stream = as_completed(range(5), work, 2)
    first = [next(stream) for _ in range(4)]
    released.set()
    assert (sorted(first), list(stream)) == ([1, 2, 3, 4], [0])


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_all_are_worked_on_and_only_so_many_at_a_time(workers: int) -> None:
    lock, busy, most = threading.Lock(), 0, 0

    def work(number: int, left: threading.Event) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.001)
        with lock:
            busy -= 1
        return number

    assert sorted(as_completed(range(40), work, workers)) == list(range(40))
    assert most <= workers


def test_an_error_of_one_ends_the_stream_and_tells_the_others() -> None:
    told = threading.Event()

    def work(number: int, left: threading.Event) -> None:
        if number == 1:
            raise ZeroDivisionError
        if left.wait(10):
            told.set()

    with pytest.raises(ZeroDivisionError):
        list(as_completed(range(3), work, 3))
    assert told.wait(10)


def test_nothing_to_do() -> None:
    assert list(as_completed([], lambda *_: None, 3)) == []


def test_threads_that_wait_do_not_keep_the_process() -> None:
    """Ctrl-C while a server takes its time: nobody waits for it."""
    code = """
import time
from prefdata.parallel import as_completed
stream = as_completed(range(3), lambda n, left: n if n == 0 else time.sleep(60), 3)
next(stream)
stream.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_the_threads_end_with_the_stream() -> None:
    list(as_completed(range(20), lambda n, left: n, 4))
    for _ in range(100):
        if not [thread for thread in threading.enumerate() if thread.name == "prefdata-request"]:
            return
        time.sleep(0.05)
    raise AssertionError("threads are left")
