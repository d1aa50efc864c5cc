"""What numbers are computed in and on: stored with them, reported, and never of two kinds in one partition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefdata.candidates.sample import sample
from prefdata.comparisons.compare import compare
from prefdata.errors import SpecConflict, UsageError
from prefdata.models import gpus, loading
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.specs import IngestSpec, RankSpec, SampleSpec
from prefdata.storage.run import Run
from prefdata.train.specs import DpoSpec, SftSpec
from prefdata.train.train import train_dpo, train_sft

CPU = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def run(tmp_path: Path, write) -> Run:
    run = Run(tmp_path / "run")
    ingest(run, [write(*({"prompt": f"Say {word}."} for word in ("one", "two", "three")))], IngestSpec())
    return run


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch):
    """This machine as one whose `auto` is bfloat16, as on a GPU; returns what makes it itself again."""
    native = loading.pick_dtype
    for module in ("engines.hf.generator", "scorers.classifier.hf", "scorers.causal_lm.likelihood"):
        monkeypatch.setattr(
            f"prefdata.{module}.pick_dtype", lambda asked, on: native("bfloat16" if asked == "auto" else asked, on)
        )
    return monkeypatch.undo


def policy(folder: Path, **more) -> SampleSpec:
    return SampleSpec(model=str(folder), max_tokens=4, name="s", engine="transformers", **more)


def test_every_step_that_runs_a_model_says_in_and_on_what(run: Run, tiny_policy, fitting_reward_model, write):
    """Steps: sample, rank by a reward model and by a likelihood, comparisons, training."""
    reward, plain = str(fitting_reward_model), str(tiny_policy)
    done = [
        sample(run, policy(tiny_policy, n=2)),
        rank(run, RankSpec(reward_model=reward)),
        rank(run, RankSpec(mean_logprob=plain)),
        compare(run, RankSpec(pairwise=plain, name="p")),
        train_sft(write({"prompt": "a", "completion": "b"}), SftSpec(model=plain), run.path / "models" / "m"),
    ]
    for outcome in done:
        lineage = json.loads((outcome.path / "_spec.json").read_text())
        assert lineage["computed"] == CPU
        assert {name: outcome.report.figures[name] for name in CPU} == CPU


@pytest.mark.parametrize("step", ["sample", "rank"])
def test_what_was_begun_in_one_precision_is_continued_in_it(run, step, tiny_policy, fitting_reward_model, bfloat16):
    def score(n: int):
        drawn = sample(run, policy(tiny_policy, n=n))
        return drawn if step == "sample" else rank(run, RankSpec(reward_model=str(fitting_reward_model)))

    assert score(1).report.figures["dtype"] == "bfloat16"
    bfloat16()
    assert score(2).report.figures["dtype"] == "bfloat16"
    assert sample(run, policy(tiny_policy, n=2), replace=True).report.figures["dtype"] == "float32"


def test_two_machines_do_not_fill_one_partition_in_two_precisions(run, tiny_policy, monkeypatch):
    """Both begin it at a time, so that neither sees what the other one computes in before its model is loaded."""
    sample(run, policy(tiny_policy, n=1))
    monkeypatch.setattr("prefdata.candidates.job.in_the_same_precision", lambda spec, _: spec)
    monkeypatch.setattr("prefdata.engines.hf.generator.pick_dtype", lambda *_: "bfloat16")
    with pytest.raises(SpecConflict, match="was begun in float32 on cpu, and this is bfloat16"):
        sample(run, policy(tiny_policy, n=2))
    assert run.partition("candidates", "s").read().num_rows == 3


def test_a_training_is_not_continued_in_another_precision(tmp_path, tiny_policy, write):
    class Stop(Exception):
        pass

    def stop(done: int, total: int, **figures: float) -> None:
        if done == 2 and "tokens" in figures:
            raise Stop

    pairs = [{"prompt": "Say it.", "chosen": f"{n}", "rejected": f"not {n}"} for n in range(8)]
    data, settings = write(*pairs), {"model": str(tiny_policy), "batch_size": 2, "save_every": 1}
    with pytest.raises(Stop):
        train_dpo(data, DpoSpec(**settings), tmp_path / "m", progress=stop)
    with pytest.raises(SpecConflict, match="begun in float32 on cpu, and this is bfloat16"):
        train_dpo(data, DpoSpec(**settings, dtype="bfloat16"), tmp_path / "m")
    assert train_dpo(data, DpoSpec(**settings), tmp_path / "m").did == "continued"


@pytest.fixture
def listed_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that lists a GPU."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    loading._warn_once.cache_clear()


def test_a_gpu_that_torch_cannot_use_is_named_once_and_the_cpu_is_used(listed_gpu, caplog):
    assert [str(loading.pick_device(None)) for _ in range(2)] == ["cpu", "cpu"]
    (warned,) = caplog.messages
    assert "cannot use this machine's NVIDIA GPU" in warned
    assert "Computing on the CPU" in warned


def test_cuda_that_was_asked_for_is_an_error_that_says_why(listed_gpu):
    with pytest.raises(UsageError, match=r"^--device cuda: torch .* cannot use this machine's NVIDIA GPU"):
        loading.pick_device("cuda")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_not_there(listed_gpu, monkeypatch, hidden, caplog):
    assert gpus.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not gpus.has_gpu()
    loading.pick_device(None)
    assert not caplog.messages
