"""Batches side by side: results in order, no more begun than needed, and the same scores on any number of cores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from prefdata.models.files import identify
from prefdata.scorers.classifier import cores as cores_module
from prefdata.scorers.classifier.cores import each, fits_one_core
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.protocol import ScoringItem

CPU = torch.device("cpu")


def test_a_small_network_on_a_cpu_gains(monkeypatch) -> None:
    net = torch.nn.Linear(10, 10)
    assert fits_one_core(net, CPU)
    assert not fits_one_core(net, torch.device("cuda"))
    monkeypatch.setattr(cores_module, "SMALL", 109)  # it has 110
    assert not fits_one_core(net, CPU)


def test_results_come_in_the_order_of_tasks_whichever_ends_first(cores) -> None:
    cores(4)

    def task(number: int) -> int:
        time.sleep(0.002 * (number % 3 == 0))
        return number

    assert list(each((partial(task, i) for i in range(50)), several=True)) == list(range(50))


@pytest.mark.parametrize(
    ("threads", "several", "at_a_time", "own"), [(4, True, 4, 1), (20, True, 8, 2), (4, False, 1, 4)]
)
def test_cores_are_shared_out(cores, threads: int, several: bool, at_a_time: int, own: int) -> None:
    cores(threads)
    meet = threading.Barrier(at_a_time)

    def task() -> int:
        meet.wait(timeout=300)  # passes only where so many run at the same time
        return torch.get_num_threads()

    assert set(each([task] * (3 * at_a_time), several=several)) == {own}
    assert torch.get_num_threads() == threads
    assert next(each([torch.get_num_threads], several=True)) == threads  # one task has all of them


def test_tasks_are_taken_as_they_are_needed(cores) -> None:
    cores(2)
    taken = []

    def tasks() -> Iterator[Callable[[], int]]:
        for i in range(1000):
            taken.append(i)
            yield lambda: 1

    results = each(tasks(), several=True)
    next(results)
    assert len(taken) < 10
    results.close()
    assert len(taken) < 10


def test_a_failure_is_raised_and_nothing_is_left_running(cores) -> None:
    cores(3)

    def task(number: int) -> int:
        if number == 5:
            raise ValueError("the fifth")
        return number

    with pytest.raises(ValueError, match="the fifth"):
        list(each((partial(task, i) for i in range(100)), several=True))
    assert torch.get_num_threads() == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefdata-ahead")]


@pytest.mark.parametrize("share", [True, False])
def test_scores_are_the_same_on_any_number_of_cores(tiny_reward_model, cores, share: bool) -> None:
    asked = [({"role": "user", "content": f"{i}: " + "Say more. " * (1 + i % 4)},) for i in range(40)]
    items = [
        ScoringItem(f"{i}/{k}", m, "word " * (1 + (7 * i + k) % 9), False)
        for i, m in enumerate(asked)
        for k in range(6)
    ]
    found = []
    for threads in (1, 4, 4):
        cores(threads)
        files = identify(str(tiny_reward_model), "reward-model")
        model = RewardModel(files, device="cpu", batch_tokens=120, share_prompts=share)
        found.append([(one.key, one.score) for one in model.score(items)])
        assert (bool(model._branching), model.notes) == (share, ())
        assert 0 <= model.padding < 0.05
    keys = [key for key, _ in found[0]]
    assert all([key for key, _ in one] == keys for one in found)
    assert found[1] == found[2]
    assert dict(found[1]) == pytest.approx(dict(found[0]), abs=1e-6)
