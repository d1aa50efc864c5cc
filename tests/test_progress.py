"""Progress: phases and a line per 10% in a pipe, a bar on a terminal, a function of the caller's."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prefdata
from prefdata.progress import Progress, no_progress, watched


def lines(capsys, *calls, step: str = "rank", phase: str | None = "scoring") -> list[str]:
    with watched(True, step) as progress:
        if phase:
            progress.phase(phase)
        for done, total, figures in calls:
            progress(done, total, **figures)
    return capsys.readouterr().err.splitlines()


def test_a_line_for_each_tenth(capsys) -> None:
    """Of 1,000 calls ten are printed, whatever the time, each with how much is done."""
    printed = lines(capsys, *((n, 1000, {}) for n in range(1, 1001)))
    assert printed[0] == "rank: scoring"
    assert [line.split(",")[0] for line in printed[1:]] == [
        f"rank: scoring {n} of 1" for n in range(100, 1000, 100)
    ] + ["rank: scoring 1"]
    assert printed[-1] == "rank: scoring 1,000 of 1,000 (100%)"
    assert "s left" in printed[1]


def test_what_was_done_before_is_not_printed_again(capsys) -> None:
    printed = lines(capsys, *((n, 100, {}) for n in range(85, 101)))
    assert [line.rpartition(" ")[0] for line in printed[1:]][-1] == "rank: scoring 100 of 100"
    assert len(printed) == 1 + 2


def test_parts_of_a_line_are_separated_by_one_comma(capsys) -> None:
    """No figures, no comma: `train: 10 of 100 (10%) , 3 s left` was printed once."""
    for figures in ({}, {"loss": 0.5}, {"tokens": 10.0, "loss": 0.5}):
        for line in lines(capsys, (0, 10, figures), (5, 10, figures), (10, 10, figures))[1:]:
            parts = line.split(", ")
            assert all(part == part.strip() and part for part in parts)
            assert " ," not in line
            assert ("loss 0.5" in parts) == ("loss" in figures)
            assert any(part.endswith("tokens/s") for part in parts) == ("tokens" in figures)


def test_an_unknown_total(capsys) -> None:
    assert lines(capsys, (3, 0, {})) == ["rank: scoring"]


def test_a_step_of_one_phase_is_named_by_itself(capsys) -> None:
    assert lines(capsys, (0, 4, {}), (4, 4, {}), step="select", phase=None) == ["select: 4 of 4 (100%)"]


def test_a_step_that_fails_at_once_prints_its_error_alone(capsys) -> None:
    def step() -> None:
        with watched(True, "sample") as progress:
            progress.phase("loading the model")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert capsys.readouterr().err == ""


def test_a_phase_that_takes_long_is_named_while_it_does(capsys, monkeypatch) -> None:
    monkeypatch.setattr("prefdata.progress.PATIENCE", 0.01)
    printed = ""
    with watched(True, "sample") as progress:
        progress.phase("loading the model")
        while not printed:
            printed += capsys.readouterr().err
            time.sleep(0.01)
    assert printed == "sample: loading the model\n"
    assert capsys.readouterr().err == ""


def test_what_a_caller_may_give(capsys) -> None:
    seen = []
    with watched(lambda done, total, **figures: seen.append((done, total, figures)), "x") as progress:
        progress.phase("one")
        progress(1, 2, loss=0.5)
    assert seen == [(1, 2, {"loss": 0.5})]
    mine = Progress()
    with watched(mine, "x") as progress:
        assert progress is mine
    with watched(False, "x") as progress:
        assert progress is no_progress
    assert capsys.readouterr().err == ""


def test_python_functions_take_true(tmp_path: Path, write, tiny_policy, tiny_reward_model, capsys) -> None:
    """Every step that takes long names its phases; the report is returned all the same."""
    run = prefdata.Run(tmp_path / "run")
    prefdata.ingest(run, [write(*({"prompt": f"Say {n}."} for n in range(4)))], prefdata.IngestSpec())
    capsys.readouterr()
    prefdata.sample(run, prefdata.SampleSpec(model=str(tiny_policy), n=6, max_tokens=12, name="s"), progress=True)
    assert capsys.readouterr().err.splitlines()[:2] == ["sample: loading the model", "sample: sampling s"]
    spec = prefdata.RewardModelSpec(reward_model=str(tiny_reward_model), name="rm")
    assert prefdata.rank(run, spec, progress=True).report.rows_out == 24
    printed = capsys.readouterr().err.splitlines()
    assert printed[:2] == ["rank: loading the scorer", "rank: scoring"]
    assert printed[-1] == "rank: scoring 24 of 24 (100%)"
    prefdata.select(run, prefdata.SelectSpec(method="top-k", k=6, truncated="keep"), progress=True)
    prefdata.pair(run, prefdata.PairSpec(truncated="keep"), progress=True)
    printed = capsys.readouterr().err
    assert "select: " in printed
    assert "pair: " in printed
    out = tmp_path / "dpo"
    prefdata.train_dpo(run.path, prefdata.DpoSpec(model=str(tiny_policy), device="cpu"), out, progress=True)
    phases = [line.removeprefix("train dpo: ") for line in capsys.readouterr().err.splitlines()]
    assert phases[:3] == ["reading the data", "tokenising", "loading the model"]
    assert "log-probabilities of the reference" in phases
    assert "training" in phases


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """What is on stderr there is one line that changes, and it is gone at the end."""
    code = """
from prefdata.progress import watched
with watched(True, "rank") as progress:
    progress.phase("scoring")
    for n in range(101):
        progress(n, 100, tokens=float(n))
"""
    reader, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(terminal)
    shown = os.read(reader, 1 << 16).decode()
    assert "rank: scoring" in shown
    assert "100/100" in shown
    assert "tokens/s" in shown
    assert "rank: scoring 10 of" not in shown


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_step_reports_as_json(form, tmp_path: Path, write, prefdata, tiny_policy) -> None:
    run, out = tmp_path / "run", tmp_path / "trl"
    function = tmp_path / "f.py"
    function.write_text("def length(messages, response):\n    return len(response)\n")
    files = write(*({"prompt": f"Say {n}."} for n in range(4)))
    steps = {
        "ingest": ["ingest", run, files, "--test", "0"],
        "sample": ["sample", run, "--model", tiny_policy, "-n", 3, "--max-tokens", 6, "--name", "s"],
        "rank": ["rank", run, "--function", f"{function}:length"],
        "select": ["select", run, "--method", "top-k", "-k", 3, "--truncated", "keep"],
        "pair": ["pair", run, "--truncated", "keep"],
        "export": ["export", run, "--to", out],
        "train dpo": ["train", "dpo", out, "--model", tiny_policy, "--out", tmp_path / "dpo", "--device", "cpu"],
    }
    for step, arguments in steps.items():
        code, printed, err = prefdata(*arguments, "--format", form)
        assert code == 0, err
        if form == "text":
            assert printed.startswith(f"{step}: made ")
            continue
        report = json.loads(printed)
        assert (report["step"], report["did"]) == (step, "made")
        assert report["rows_in"] == report["rows_out"] + sum(report["dropped"].values())
        assert Path(report["path"]).exists()


def test_the_samplers_of_a_sweep_are_a_list(tmp_path: Path, write, prefdata, tiny_policy) -> None:
    run = tmp_path / "run"
    prefdata("ingest", run, write({"prompt": "Say it."}))
    sweep = ["--sweep", "temperature=0.5,1.0", "-n", 1, "--max-tokens", 3, "-f", "json"]
    reports = json.loads(prefdata("sample", run, "--model", tiny_policy, *sweep)[1])
    assert [report["rows_out"] for report in reports] == [1, 1]
