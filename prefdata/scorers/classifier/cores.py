"""Several batches at a time, one on each core of a CPU.

A small network's matrix products are too short to be divided among cores, so that one batch at a time
leaves the other cores idle; several batches at a time, each on threads of its own, do not. A GPU and a large network
get one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import torch

from prefdata.parallel import prefetch_map

T = TypeVar("T")

MOST_AT_A_TIME = 8
"""Batches at a time; with more of them, Python's own lock is what they wait for. More cores share a batch."""


SMALL = 100_000_000
"""Parameters up to which a network is small: a batch takes seconds at most, which is what Ctrl-C waits for."""


def fits_one_core(net: torch.nn.Module, device: torch.device) -> bool:
    """Whether a network on this device gains from several batches at a time."""
    return device.type == "cpu" and sum(parameter.numel() for parameter in net.parameters()) <= SMALL


def each(tasks: Iterable[Callable[[], T]], *, several: bool) -> Iterator[T]:
    """Yield the results of tasks, in their order; `several` run at a time, in threads.

    A task says by itself that it needs no gradients. Fewer tasks than there are cores share them one after the other.
    """
    stream = iter(tasks)
    threads = torch.get_num_threads()
    at_a_time = min(threads, MOST_AT_A_TIME) if several else 1
    first = list(islice(stream, at_a_time))
    if at_a_time == 1 or len(first) < at_a_time:
        yield from (task() for task in chain(first, stream))
        return
    alone = partial(torch.set_num_threads, threads // at_a_time)
    try:
        yield from prefetch_map(chain(first, stream), _done, at_a_time, most=2 * at_a_time, begin=alone)
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself is every later thread's default


def _done(task: Callable[[], T]) -> T:
    return task()
