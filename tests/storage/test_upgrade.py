"""Runs of the version before: their scores get what they lack, once, and no score is lost on the way."""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from scored_runs import answer, scored_run, write

from prefdata.errors import InputError, SpecConflict, StorageError
from prefdata.explore.curves.curves import curves
from prefdata.explore.explain import explain
from prefdata.pairs.pair import pair
from prefdata.scores.rank import rank
from prefdata.selections.select import select
from prefdata.specs import PairSpec, RankSpec, SelectSpec
from prefdata.storage import upgrade as module
from prefdata.storage.compaction import compact, is_clustered, prompt_runs
from prefdata.storage.leases import WorkLeases
from prefdata.storage.run import Partition, Run

OLD = ["candidate_id", "prompt_id", "score", "reason", "text_hash", "details"]
SPEC = SelectSpec(method="top-k", k=2)


def make_old(run: Run) -> None:
    """Write a run as the version before had it: scores of version 1, and no checksums in names and JSON files."""
    for file in [*run.path.glob("*/*=*/_spec.json"), *run.path.glob("*/*=*/_SUCCESS")]:
        values = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in values.items() if k not in ("checksum", "files", "seen")}))
    for part in run.path.glob("*/*=*/part-*.parquet"):
        if part.parts[-3] == "scores":
            rows = pq.read_table(part, partitioning=None)
            metadata = {**rows.schema.metadata, b"version": b"1"}
            pq.write_table(rows.select(OLD).replace_schema_metadata(metadata), part)
        part.rename(part.with_name(f"{part.stem[:10]}.parquet"))


def rows() -> list[dict[str, Any]]:
    dice = random.Random(0)
    found = [
        answer(f"prompt {p}", i, None if i == 3 else dice.random(), sampler=sampler, round=round_, text=f" {p} {i}\n")
        for round_, sampler in enumerate(("policy", "hot"))
        for p in range(9)
        for i in range(4)
    ]
    found[5]["finish_reason"] = "length"
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the version before, in five parts."""
    run = scored_run(tmp_path / "run", rows(), parts=5)
    make_old(run)
    return run


def parts(run: Run, name: str = "reward") -> list[Path]:
    return sorted(run.path.glob(f"scores/scorer={name}/part-*.parquet"))


def stored(run: Run, name: str = "reward") -> list[dict[str, Any]]:
    return [row for part in parts(run, name) for row in pq.read_table(part, partitioning=None).to_pylist()]


def versions(run: Run, name: str = "reward") -> set[str]:
    return {pq.read_metadata(part).metadata[b"version"].decode() for part in parts(run, name)}


def old_columns(run: Run) -> list[dict[str, Any]]:
    return sorted(({name: row[name] for name in OLD} for row in stored(run)), key=lambda row: row["candidate_id"])


def test_a_run_of_the_version_before_is_brought_up_to_date(run: Run, tmp_path: Path, caplog) -> None:
    """The same rows, in the same parts, and the same selection, with one line that says so; and then never again."""
    new = scored_run(tmp_path / "new", rows(), parts=5)
    with caplog.at_level(logging.WARNING, "prefdata"):
        assert select(run, SPEC).report.dropped == select(new, SPEC).report.dropped
    assert [record.message for record in caplog.records] == [
        "prefdata: scores/reward was written by an earlier version: 72 scores brought up to date."
    ]
    assert old_columns(run) == old_columns(new)
    assert sorted(stored(run), key=str) == sorted(stored(new), key=str)
    assert is_clustered(map(prompt_runs, parts(run)))
    assert versions(run) == {"2"}
    selected = [run.partition("selections", "top-k-2").read() for run in (run, new)]
    assert selected[0].sort_by("candidate_id").equals(selected[1].sort_by("candidate_id"))
    caplog.clear()
    assert select(run, SPEC).did == "kept"
    assert pair(run, PairSpec()).did == "made"
    assert not caplog.records
    assert not list(run.path.glob("_tmp-*"))


def test_the_command_says_so_on_stderr_in_one_line(run: Run) -> None:
    command = [sys.executable, "-m", "prefdata.cli", "select", run.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, *progress = done.stderr.splitlines()
    assert first == "prefdata: scores/reward was written by an earlier version: 72 scores brought up to date."
    assert all(line.startswith("select: ") for line in progress)


@pytest.mark.parametrize("use", ["pair", "combine", "curves", "explain", "where", "table"])
def test_whoever_reads_scores_brings_them_up_to_date(run: Run, use: str) -> None:
    uses = {
        "pair": lambda: pair(run, PairSpec(selector="all")),
        "combine": lambda: rank(run, RankSpec(combine="2*reward")),
        "curves": lambda: curves(run, samplers=("policy",), partial=True),
        "explain": lambda: explain(run, run.partition("pairs", "top").read()["pair_id"][0].as_py()),
        "where": lambda: pair(run, PairSpec(selector="top", where="score > 0.1", name="some")),
        "table": lambda: run.partition("scores", "reward").read(),
    }
    if use in ("explain", "where"):
        select(run, SelectSpec(method="top-k", k=3, name="top"))
        pair(run, PairSpec(selector="top"))
        make_old(run)
    uses[use]()
    assert versions(run) == {"2"}


def test_scores_that_were_begun_go_on(run: Run, tmp_path: Path) -> None:
    """rank scores what is missing, and nothing again; what it adds stands beside what was there."""
    function = tmp_path / "f.py"
    function.write_text("def length(messages, response):\n    return len(response)\n")
    spec = RankSpec(function=f"{function}:length")
    rank(run, spec)
    before = {row["candidate_id"]: row["score"] for row in stored(run, "length")}
    make_old(run)
    write(run, "candidates", "late", [answer(f"prompt {p}", 0, None, sampler="late") for p in range(9)])
    done = rank(run, spec)
    assert (done.did, done.report.rows_out) == ("continued", 72 + 9)
    after = {row["candidate_id"]: row["score"] for row in stored(run, "length")}
    assert before.items() <= after.items()
    assert versions(run, "length") == {"2"}
    assert select(run, SelectSpec(scorer="length", method="top-k", k=99)).report.rows_in == 81


def test_scores_of_candidates_that_are_gone(run: Run, tmp_path: Path, caplog) -> None:
    """No score is thrown away by a command that only reads; `rank` leaves them out, as it always has."""
    kept = [row for row in rows() if row["sampler"] == "policy"]
    shutil.rmtree(run.path / "candidates/sampler=hot")
    before = stored(run)
    with pytest.raises(InputError, match=r"scores of candidates that are not in .*Run `prefdata rank` again"):
        select(run, SPEC)
    assert len(stored(run)) == len(before)
    run.partition("scores", "reward").upgrade(drop_orphans=True)
    assert {row["candidate_id"] for row in stored(run)} == {row["candidate_id"] for row in kept}
    assert "36 of candidates that are gone were left out" in caplog.text
    assert select(run, SPEC).report.rows_in == 36


@pytest.mark.parametrize("done", [True, False], ids=["finished", "unfinished"])
def test_stopped_in_the_middle_the_next_command_does_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    if not done:
        (run.path / "scores/scorer=reward/_SUCCESS").unlink()
    before = old_columns(run)
    monkeypatch.setattr(module, "_ROWS", 2048)
    with monkeypatch.context() as patched:
        patched.setattr(Partition, "_place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            select(run, SPEC, partial=True)
    assert old_columns(run) == before
    unlink = Path.unlink
    with monkeypatch.context() as patched:  # the new ones are there, and one of the old ones is gone

        def stops(self: Path, missing_ok: bool = False) -> None:
            if self.name.startswith("part-00001"):
                raise KeyboardInterrupt
            unlink(self, missing_ok)

        patched.setattr(Path, "unlink", stops)
        with suppress(KeyboardInterrupt):
            select(run, SPEC, partial=True)
    assert select(run, SPEC, partial=True, replace=True).report.rows_in == 72
    assert versions(run) == {"2"}
    scores = run.partition("scores", "reward")
    compact(scores, ["candidate_id"])
    assert old_columns(run) == before
    assert scores.state == ("finished" if done else "unfinished")


def test_killed_in_the_middle_no_score_is_lost(run: Run) -> None:
    code = (
        "import sys, time; from prefdata import Run; from prefdata.storage import upgrade\n"
        "joined = upgrade._joined\n"
        "def slow(*given):\n    for rows in joined(*given): yield rows; time.sleep(60)\n"
        "upgrade._joined = slow; Run(sys.argv[1]).only('scores')"
    )
    before = old_columns(run)
    process = subprocess.Popen([sys.executable, "-c", code, run.path], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(run.path.glob("scores/_new-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert versions(run) == {"1"}
    run.only("scores")
    assert versions(run) == {"2"}
    assert old_columns(run) == before
    assert not [*run.path.glob("_tmp-*"), *run.path.glob("scores/_*")]


def test_two_at_once(run: Run) -> None:
    before = old_columns(run)
    code = "import sys; from prefdata import Run; print(Run(sys.argv[1]).only('scores').read().num_rows)"
    both = [
        subprocess.Popen([sys.executable, "-c", code, run.path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == [b"72\n"] * 2
    assert old_columns(run) == before
    assert versions(run) == {"2"}


def test_not_while_another_process_scores(run: Run) -> None:
    with WorkLeases(run.partition("scores", "reward").path), pytest.raises(SpecConflict, match="is at work on it"):
        select(run, SPEC)
    assert versions(run) == {"1"}


def test_a_run_that_cannot_be_written(small_disk: Path) -> None:
    run = scored_run(small_disk / "run", rows()[:8])
    make_old(run)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=r"written by an earlier prefdata .* read-only.* give a copy of its folder"):
        select(run, SPEC)
    assert versions(run) == {"1"}
    assert len(stored(run)) == 8


def test_an_empty_part_and_candidates_of_two_samplers(tmp_path: Path) -> None:
    both = [answer("p", i, float(i), sampler=sampler, law="same") for sampler in ("a", "b") for i in range(3)]
    run = scored_run(tmp_path / "run", both)
    scores = run.partition("scores", "reward")
    scores.append(scores.table.empty())
    make_old(run)
    assert pl.DataFrame(run.only("scores").read())["sampler"].to_list() == ["a"] * 3
    assert versions(run) == {"2"}


def test_only_parts_of_the_version_before_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.only("scores")
    monkeypatch.setattr(module, "_joined", lambda *_: 1 / 0)
    assert run.only("scores").read().num_rows == 72
