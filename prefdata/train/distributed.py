"""Data parallelism: each process computes its share of a step's micro-batches, and gradients and metrics are summed.

The loss is divided by the size of the whole step, so that sums are all that it takes: every process then has the same
gradient, clips it and takes the same step. The first process alone writes. Without other processes each function
returns what it was given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prefdata.errors import EngineError, UsageError
from prefdata.models.loading import pick_device
from prefdata.train.launch import LAUNCHED, LOST, end_with_parent, place

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others."""


class LostProcess(EngineError):
    """Another process of the training ended, or cannot be reached."""

    exit_code = LOST if LAUNCHED in os.environ else 1


@contextmanager
def joined(device: str | None) -> Iterator[None]:
    """Join the other processes of this training for as long as the context lasts.

    Raises:
        UsageError: the processes on this machine are more than its GPUs, or share one.
        LostProcess: the others cannot be reached.
    """
    here = place()
    if here.world == 1:
        yield
        return
    end_with_parent()
    if device is not None and ":" in device:
        raise UsageError(f"--device {device}: each of several processes takes the GPU of its number. Use cuda.")
    if pick_device(device).type == "cuda":
        if here.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {here.local_rank + 1} on this machine has no GPU: there are {torch.cuda.device_count()}. "
                "Start one process for each, or use --device cpu."
            )
        torch.cuda.set_device(here.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    if here.rank:
        logging.getLogger("prefdata").setLevel(logging.ERROR)  # the first process says it
    with _others():
        dist.init_process_group(backend, timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: it may wait for processes that wait for this one


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        gathered(None)


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes, in their order; tensors in them must be on the CPU."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    with _others():
        dist.all_gather_object(found, value)
    return found


def agree(**facts: Any) -> None:
    """Check that every process has the same facts.

    Raises:
        EngineError: one differs; then they would train on different data or weights.
    """
    for number, theirs in enumerate(gathered(facts)):
        for name, value in facts.items():
            if theirs[name] != value:
                raise EngineError(
                    f"processes {rank() + 1} and {number + 1} of {world()} differ in {name} ({value}, "
                    f"{theirs[name]}). Each needs the same command, files and libraries."
                )


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in float32; a parameter that has none anywhere stays without."""
    if world() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    has = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    with _others():
        dist.all_reduce(has)
        for parameter, count in zip(trained, has.tolist(), strict=True):
            if count:
                _sum_gradient(parameter)


def _sum_gradient(parameter: nn.Parameter) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    whole = parameter.grad.float().contiguous()
    dist.all_reduce(whole)
    if whole is not parameter.grad:
        parameter.grad.copy_(whole)


def sum_metrics(sums: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Add up the `[2]` float64 sums and counts of all processes by name; not all of them need to have each."""
    if world() == 1:
        return dict(sums)
    names = sorted({name for theirs in gathered(list(sums)) for name in theirs})
    zero = torch.zeros(2, dtype=torch.float64, device=device)
    table = torch.stack([sums[name].to(device) if name in sums else zero for name in names])
    with _others():
        dist.all_reduce(table)
    return dict(zip(names, table, strict=True))


@contextmanager
def _others() -> Iterator[None]:
    """Turn what torch raises when another process has ended into an error that says so."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise LostProcess(
            f"process {place().rank + 1} of {place().world}: another process of this training has ended or cannot be "
            f"reached ({reason}). The last checkpoint is kept, and the same command continues."
        ) from error
