"""Several processes train what one does: the same loss, gradient norm and weights up to float32 rounding.

Each step's metrics are compared, and the weights at the end. Rounding: the float32 sums of a step's gradients are added
in another order, so that they differ by some 1e-7 of their size.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forks import Forked
from safetensors.numpy import load_file

from prefdata.errors import UsageError
from prefdata.models.memory import TokenBudget
from prefdata.train.batches import Example, cuts, shares
from prefdata.train.distributed import joined
from prefdata.train.launch import place
from prefdata.train.loop import own_batches
from prefdata.train.ppo.ppo import PpoTraining
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.specs import DpoSpec
from prefdata.train.train import train_dpo

SETTINGS = [
    "--max-steps",
    "10",
    "--epochs",
    "5",
    "--batch-size",
    "6",
    "--micro-tokens",
    "150",
    "--log-every",
    "1",
    "--lr",
    "1e-3",
    "--warmup",
    "0.1",
]

Rows = list[dict[str, Any]]


def of_pairs(pairs: Rows) -> Rows:
    return pairs


def demonstrations(pairs: Rows) -> Rows:
    return [{"messages": [*row["prompt"], *row["chosen"]], "split": row["split"]} for row in pairs]


def groups(pairs: Rows) -> Rows:
    """Three responses, two or one: the processes must agree on K."""
    draw, rows = random.Random(0), []
    for number, row in enumerate(pairs):
        responses = [row["chosen"][0]["content"], row["rejected"][0]["content"], "fine film"][: 2 + number % 2]
        rewards = [round(draw.random(), 3) for _ in responses]
        rows.append({"prompt": row["prompt"], "completions": responses, "scores": rewards, "split": row["split"]})
    return rows


def labels(pairs: Rows) -> Rows:
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen", "split": row["split"]}
        for row in pairs
        for side in ("chosen", "rejected")
    ]


FAMILIES = {
    "nll": ("sft", demonstrations, []),
    "bradley-terry": ("rm", of_pairs, []),
    "sigmoid": ("dpo", of_pairs, []),
    "rrhf": ("dpo", groups, ["--loss", "rrhf"]),
    "aot": ("dpo", of_pairs, ["--loss", "aot"]),
    "kto": ("kto", labels, []),
    "bco": ("kto", labels, ["--loss", "bco"]),
}


def environments(count: int) -> list[dict[str, str]]:
    """The variables that torchrun sets in each of so many processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [{**shared, "RANK": str(rank)} for rank in range(count)]


def together(count: int, *arguments: object) -> list[Forked]:
    """Start a command in `count` processes, as torchrun does."""
    return [Forked(*arguments, environment=environment) for environment in environments(count)]


def finish(processes: list[Forked]) -> list[str]:
    """Wait for all; returns what each printed."""
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return [out for out, _ in printed]


@pytest.fixture
def data(tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> Callable[[Callable[[Rows], Rows]], Path]:
    def make(rows_of: Callable[[Rows], Rows]) -> Path:
        pairs = [{**row, "split": "test" if i % 6 == 0 else "train"} for i, row in enumerate(make_pairs(22))]
        return write_jsonl(tmp_path / "data.jsonl", rows_of(pairs))

    return make


def assert_equal(one: Path, other: Path, rtol: float = 1e-4) -> None:
    """Compare the metrics of each step, and the weights."""
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)
    )
    assert len(ours) == len(theirs) == 11  # ten steps and the evaluation
    for step, same in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm", "eval/loss"):
            assert step.get(name) == pytest.approx(same.get(name), rel=rtol), (step["step"], name)
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name, values in weights.items():
        # AdamW divides by the root of a squared gradient: where that is near 0, rounding counts for more.
        assert np.abs(values - others[name]).max() < 2e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_train_what_one_does(
    family: str, data: Any, tiny_policy: Path, tmp_path: Path, prefdata: Any
) -> None:
    command, rows_of, more = FAMILIES[family]
    given = ["train", command, data(rows_of), "--model", tiny_policy, *more, *SETTINGS]
    code, _, err = prefdata(*given, "--out", tmp_path / "one")
    assert code == 0, err
    first, second = finish(together(2, *given, "--out", tmp_path / "two"))
    assert_equal(tmp_path / "one", tmp_path / "two")
    assert "processes" in first
    assert second == ""  # the first one alone prints


def test_dropout_does_not_depend_on_the_number_of_processes(
    data: Any, make_policy: Any, tmp_path: Path, prefdata: Any
) -> None:
    """Dropout is on in sft; each micro-batch drops the same wherever it is computed."""
    model = make_policy(tmp_path / "model", attention_dropout=0.3)
    given = ["train", "sft", data(demonstrations), "--model", model, *SETTINGS]
    assert prefdata(*given, "--out", tmp_path / "one")[0] == 0
    finish(together(2, *given, "--out", tmp_path / "two"))
    assert_equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2)])
def test_any_number_of_processes_continues_a_checkpoint(
    before: int, after: int, data: Any, tiny_policy: Path, tmp_path: Path, prefdata: Any
) -> None:
    """Killed after the checkpoint of step 4 by SIGKILL; the same number ends in equal bits."""
    given = ["train", "dpo", data(of_pairs), "--model", tiny_policy, *SETTINGS, "--save-every", "4"]
    if before == after:
        finish(together(before, *given, "--out", tmp_path / "whole"))
    else:
        assert prefdata(*given, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "cut"
    running = together(before, *given, "--out", out)
    while not (out / "_checkpoint").exists():
        assert all(process.poll() is None for process in running)
        time.sleep(0.002)
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert not (out / "_SUCCESS").exists()  # or the test shows nothing
    finish(together(after, *given, "--out", out)) if after > 1 else prefdata(*given, "--out", out)
    assert_equal(tmp_path / "whole", out)
    if before == after:
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_killed_process_ends_the_others(data: Any, tiny_policy: Path, tmp_path: Path) -> None:
    given = [data(of_pairs), "--model", tiny_policy, "--batch-size", 6, "--epochs", 10000, "--save-every", 1]
    first, second = together(2, "train", "dpo", *given, "--out", tmp_path / "out")
    while not (tmp_path / "out" / "_checkpoint").exists():
        assert first.poll() is second.poll() is None
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "another process of this training has ended or cannot be reached" in err
    assert "Traceback" not in err


def test_processes_with_other_data_do_not_train(
    make_pairs: Any, write_jsonl: Any, tiny_policy: Path, tmp_path: Path
) -> None:
    """As where each machine has a file of its own; the last row differs."""
    rows = make_pairs(12)
    files = [write_jsonl(tmp_path / f"{seed}.jsonl", [*rows, *make_pairs(1, seed)]) for seed in (1, 2)]
    given = ["--model", tiny_policy, "--out", tmp_path / "out"]
    running = [
        Forked("train", "rm", file, *given, environment=environment)
        for file, environment in zip(files, environments(2), strict=True)
    ]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "of 2 differ in examples" in err
    assert not (tmp_path / "out").exists()


def example(prompt: int, *responses: int) -> Example:
    ids = [np.ones(length, np.int32) for length in (prompt, *responses)]
    return Example(ids[0], tuple(ids[1:]))


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("world", [1, 2, 3, 8, 40])
def test_shares_are_a_partition_balanced_by_tokens(layout: Any, world: int) -> None:
    draw = random.Random(world)
    examples = [example(draw.randint(1, 30), draw.randint(1, 30), draw.randint(1, 30)) for _ in range(30)]
    index = draw.sample(range(30), 24)
    found = shares(examples, index, 150, layout, world)
    assert len(found) == world
    assert sorted(i for own in found for part in own for i in part) == sorted(index)
    assert found[0]
    if world <= 24:
        assert all(found)
    whole = cuts(examples, index, 150, layout)
    if len(whole) >= world:
        assert sorted(part for own in found for part in own) == sorted(whole)
        loads = [sum(examples[i].shared_tokens for part in own for i in part) for own in found]
        assert max(loads) - min(loads) <= 180  # one micro-batch, or one example that is longer


def test_a_process_whose_memory_ends_cuts_its_own_share_smaller() -> None:
    """The others go on with what they have, so the shares may not change."""
    examples = [example(5 + i, 4, 5) for i in range(12)]
    loaded: Any = SimpleNamespace(micro=TokenBudget(100), layout="packed")
    for tokens in (100, 50, 1):
        found = [batch.index.tolist() for batch in own_batches(loaded, examples, range(12), tokens)]
        assert sorted(i for part in found for i in part) == list(range(12))
        assert all(len(part) == 1 or sum(examples[i].shared_tokens for i in part) <= tokens for part in found)


def test_a_place_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch, data: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="MASTER_ADDR is not set"):
        place()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UsageError, match="RANK 2 of WORLD_SIZE 2"):
        place()


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environments(2)[1].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="takes the GPU of its number"), joined("cuda:0"):
        raise AssertionError("it began")


def test_ppo_runs_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several would write the run's rollouts."""
    for name, value in environments(2)[0].items():
        monkeypatch.setenv(name, value)
    training = PpoTraining.__new__(PpoTraining)
    training.spec = PpoSpec(model="m", reward=("r",))
    with pytest.raises(UsageError, match="train ppo runs in one process, and this is one of 2"):
        training.run(replace=False, progress=False)


def test_only_the_command_line_starts_processes(data: Any, tiny_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only the command line starts processes"):
        train_dpo(data(of_pairs), DpoSpec(model=str(tiny_policy), nproc=2), tmp_path / "out")
