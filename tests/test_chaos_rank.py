"""rank under fire: kill -9 at random moments, alone and beside another process, and Ctrl-C.

What must hold afterwards: every candidate is scored once, every comparison is made once, and each is what an
undisturbed run gives. What must hold in between: a row on disk stays as it is and is never made again.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from forks import Forked
from shells import Command, finish, killed_at, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = 10
PAIRWISE, JUDGED = 200, 200
"""Prompts with six answers each: some seconds of work, so that kills hit it."""
SLOW = """
import time
def slow(messages, response):
    time.sleep(0.002)
    return len(response)
"""
RUBRIC = """
kind: absolute
text: "{prompt} {response}"
aspects: [{name: good, text: "Is it good?"}]
rationale_chars: 0
"""
QUESTION = """
kind: pairwise-labels
text: "{prompt} {first} {second}"
labels: [A, B]
"""
TWO = ["first_id", "second_id", "order", "annotator"]


def ingest(run: Path, prompts: int, answers: int) -> None:
    file = run.with_suffix(".jsonl")
    rows = ({"prompt": f"Say {i}.", "responses": [f"{i}-{k}" for k in range(answers)]} for i in range(prompts))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finish("ingest", run, file, "--as", "candidates")


def stored(run: Path, table: str) -> pl.DataFrame:
    """Every row as it lies in the parts, twice if it is there twice."""
    parts = sorted(run.glob(f"{table}/*/part-*.parquet"))
    frames = [pl.read_parquet(part, hive_partitioning=False) for part in parts]
    return pl.concat(frames) if frames else pl.DataFrame()


def unfinished(run: Path) -> list[str]:
    return [path.name for path in run.rglob("_*") if path.name not in ("_SUCCESS", "_spec.json")]


def test_killed_beside_another_process(tmp_path: Path) -> None:
    run, dice = tmp_path / "run", random.Random(3)
    function = tmp_path / "f.py"
    function.write_text(SLOW)
    ingest(run, 500, 10)  # ten seconds of work
    command = ["rank", run, "--function", f"{function}:slow"]
    steady, before = Forked(*command), stored(run, "scores")
    killed = 0
    for number in range(6):
        killed += killed_at((Forked if number else start)(*command), dice.uniform(0.2, 1.2))
        now = stored(run, "scores")
        if before.height:
            assert before.join(now, on=["candidate_id", "score"], how="anti").height == 0
        before = now
    assert killed >= 3
    _, err = steady.communicate(timeout=1800)
    assert steady.returncode == 0, err
    finish(*command)
    found = stored(run, "scores")
    assert found.height == 5000
    assert found["candidate_id"].is_unique().all()
    assert unfinished(run) == []


Ask = Callable[[Path], tuple[list[object], str, list[str], int]]


@pytest.fixture(scope="module", params=["pairwise", "judge"])
def ask(
    request: pytest.FixtureRequest, make_policy: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Ask:
    """A command that ranks with a language model; the table, the key and the number of rows that it makes."""
    folder = tmp_path_factory.mktemp("judges")
    policy = make_policy(folder / "policy", max_position_embeddings=256)
    (folder / "rubric.yaml").write_text(RUBRIC)
    (folder / "question.yaml").write_text(QUESTION)

    def pairwise(run: Path) -> tuple[list[object], str, list[str], int]:
        model = ["--pairwise", policy, "--rubric", folder / "question.yaml", "--schedule", "all"]
        return ["rank", run, *model, "--batch-tokens", "256"], "comparisons", TWO, PAIRWISE * 15 * 2

    def judge(run: Path) -> tuple[list[object], str, list[str], int]:
        model = ["--judge", policy, "--rubric", folder / "rubric.yaml", "--engine", "transformers"]
        how = ["--judge-tokens", "24", "--judge-tries", "2", "--batch-tokens", "512"]
        return ["rank", run, *model, *how], "scores", ["candidate_id"], JUDGED * 6

    return {"pairwise": pairwise, "judge": judge}[request.param]


def killed(process: Command, run: Path, table: str, dice: random.Random, *, at_work: bool) -> bool:
    """kill -9 at a random moment, or at one after a part was written; whether the process was still there."""
    parts = set(run.glob(f"{table}/*/part-*.parquet"))
    while at_work and process.poll() is None and set(run.glob(f"{table}/*/part-*.parquet")) <= parts:
        time.sleep(0.05)
    return killed_at(process, dice.uniform(0.0, 0.7) if at_work else dice.uniform(0.1, 2.0))


def test_killed_at_random_moments(ask: Ask, tmp_path: Path) -> None:
    calm, run = tmp_path / "calm", tmp_path / "run"
    ingest(calm, PAIRWISE if ask(calm)[1] == "comparisons" else JUDGED, 6)
    shutil.copytree(calm, run)
    nothing = "no candidate has a score"  # a random network's judgments cannot be parsed: rows of nulls, exit 1
    finish(*ask(calm)[0], but=nothing)
    command, table, key, rows = ask(run)
    dice, kills, hits, before = random.Random(11), 0, 0, pl.DataFrame()
    while kills < KILLS:
        kills += killed(Forked(*command), run, table, dice, at_work=bool(kills % 2))
        now = stored(run, table)
        if now.height:
            assert now.select(key).is_unique().all()
        if before.height:  # nothing is lost or changed
            assert before.join(now, on=now.columns, how="anti", nulls_equal=True).height == 0
        hits += before.height < now.height < rows
        before = now
        if now.height == rows:  # done before the kills were: begin anew
            shutil.rmtree(run / table)
            before = pl.DataFrame()
    assert hits >= 3
    finish(*command, but=nothing)
    mine, whole = stored(run, table).sort(key), stored(calm, table).sort(key)
    assert mine.height == whole.height == rows
    assert mine.select(key).equals(whole.select(key))
    numbers = [name for name in whole.columns if whole[name].dtype == pl.Float64]
    for name in numbers:
        assert (mine[name].is_null() == whole[name].is_null()).all()
        assert ((mine[name] - whole[name]).abs().max() or 0.0) < 1e-5
    # Other neighbours in a batch round differently: that moves the last digits of log-odds, and of a judge's words one
    # in thousands at most.
    words = [name for name in whole.columns if name not in (*numbers, "rationale")]
    assert mine.join(whole, on=words, how="anti", nulls_equal=True).height <= rows / 1000
    assert unfinished(run) == []


def test_ctrl_c_keeps_what_is_finished(ask: Ask, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ingest(run, 600, 6)
    command, table, key, _ = ask(run)
    process = start(*command)
    while not stored(run, table).height:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 300  # a guard against a command that works on
    assert err.endswith("prefdata: stopped; what was finished is kept, and the same command continues.\n")
    assert "Traceback" not in err
    found = stored(run, table)
    assert found.select(key).is_unique().all()
    assert [path.name for path in run.rglob("_tmp*")] == []
