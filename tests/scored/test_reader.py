"""The reader: whole prompts, from files in whatever order, and the same rows however they are read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from scored_runs import answer, scored_run, write

from prefdata import ids
from prefdata.errors import InputError, StorageError, UsageError
from prefdata.pairs.pair import pair
from prefdata.scored import open_scored, reader
from prefdata.scored.query import ScoredQuery
from prefdata.selections.select import select
from prefdata.specs import FilterSpec, PairSpec, SelectSpec
from prefdata.storage import queries
from prefdata.storage.run import Run


def scored(prompts: int, *samplers: str, each: int = 4) -> list[dict[str, Any]]:
    """Candidates with random scores, sampler by sampler, prompt by prompt."""
    dice = random.Random(3)
    return [
        answer(f"prompt {p}", i, round(dice.gauss(0, 1), 2), sampler=sampler)
        for sampler in samplers or ("policy",)
        for p in range(prompts)
        for i in range(each)
    ]


def by_prompt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["prompt"])


@contextmanager
def opened(run: Run, table: str = "scores", name: str = "reward", **asked: Any) -> Iterator[reader.PromptBatches]:
    filters = {key: asked.pop(key) for key in list(asked) if key in FilterSpec.model_fields}
    with open_scored(run, FilterSpec(**filters), run.partition(table, name), **asked) as batches:
        yield batches


def read(run: Run, table: str = "scores", name: str = "reward", **asked: Any) -> pl.DataFrame:
    with opened(run, table, name, **asked) as batches:
        return batches.to_frame()


def never(*_: Any) -> Any:
    raise AssertionError("nothing needs to be sorted")


@pytest.mark.parametrize("batch_rows", [1_000_000, 10, 1])
@pytest.mark.parametrize("parts", [1, 3, 50])
def test_rows_that_are_together_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int, parts: int
) -> None:
    monkeypatch.setattr(reader, "BATCH_ROWS", batch_rows)
    rows = scored(12, each=4)
    run = scored_run(tmp_path / "run", rows, parts=parts)
    monkeypatch.setattr(ScoredQuery, "read", never)
    with opened(run) as batches:
        found = list(batches)
    assert pl.concat(found)["candidate_id"].to_list() == [row["candidate_id"] for row in rows]
    of_each = [set(batch["prompt_id"]) for batch in found]
    assert sum(map(len, of_each)) == len(set().union(*of_each)) == 12  # no prompt is in two batches
    assert (len(found) > 2) == (batch_rows < 48 and parts > 1)  # a part is read whole


@pytest.mark.parametrize("batch_rows", [1_000_000, 10])
@pytest.mark.parametrize("order", ["by turns", "shuffled", "samplers", "one moved"])
def test_rows_that_are_apart_are_sorted_by_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int, order: str
) -> None:
    monkeypatch.setattr(reader, "BATCH_ROWS", batch_rows)
    rows = scored(12, "policy", "hot")
    came = {
        "by turns": sorted(rows, key=lambda row: row["sample_index"]),
        "shuffled": random.Random(1).sample(rows, len(rows)),
        "samplers": rows,
        "one moved": [*by_prompt(rows)[1:], by_prompt(rows)[0]],
    }[order]
    run = scored_run(tmp_path / "run", came, parts=7)
    wanted = sorted(rows, key=lambda row: (row["prompt_id"], row["sample_index"], row["candidate_id"]))
    with opened(run) as batches:
        found = list(batches)
    assert pl.concat(found)["candidate_id"].to_list() == [row["candidate_id"] for row in wanted]
    of_each = [set(batch["prompt_id"]) for batch in found]
    assert sum(map(len, of_each)) == len(set().union(*of_each)) == 12
    assert (len(found) > 2) == (batch_rows < 96)


def test_a_batch_says_of_a_candidate_what_the_tables_say(tmp_path: Path) -> None:
    texts = ["a  b", " a b\n", "", "👩‍👩‍👧"]
    rows = [answer("p", i, float(i), text=text, round=i, finish_reason="length") for i, text in enumerate(texts)]
    run = scored_run(tmp_path / "run", rows)
    for frame in (read(run), read(run, prompt_id=ids.digest("p")), read(run, texts=True)):
        assert frame.sort("sample_index")["chars"].to_list() == [4, 3, 0, 5]
        keys = frame.sort("sample_index")["text_key"].to_list()
        assert keys[0] == keys[1] == ids.text_key("a b") != keys[2]
        assert frame.select(pl.col("sampler", "round", "finish_reason", "draws", "excluded")).row(3) == (
            "policy", 3, "length", None, None,
        )  # fmt: skip
    assert sorted(read(run, texts=True)["text"]) == sorted(texts)
    with opened(run) as batches:
        assert batches.scorer == "reward"
    assert read(run, prompt_id=ids.digest("q")).height == 0


def test_results_come_in_the_order_of_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scores that are grouped by prompt; else by prompt_id."""
    monkeypatch.setattr(reader, "BATCH_ROWS", 10)
    rows = scored(20)
    run = scored_run(tmp_path / "run", rows, parts=3)
    select(run, SelectSpec(method="top-k", k=2, name="x"))
    pair(run, PairSpec(selector="x"))
    order = list(dict.fromkeys(row["prompt_id"] for row in rows))
    for table, name in (("selections", "x"), ("pairs", "x")):
        of_rows = run.partition(table, name).read(["prompt_id"])["prompt_id"].to_pylist()
        assert list(dict.fromkeys(of_rows)) == order
    shuffled = scored_run(tmp_path / "shuffled", random.Random(1).sample(rows, len(rows)), parts=3)
    select(shuffled, SelectSpec(method="top-k", k=2, name="x"))
    of_rows = shuffled.partition("selections", "x").read(["prompt_id"])["prompt_id"].to_pylist()
    assert list(dict.fromkeys(of_rows)) == sorted(order)


SPECS = {
    "rso": {"method": "rso", "k": 2},
    "swept": {"method": "rso-algorithm1", "k": 2, "shuffle": True},
    "drawn": {"method": "boltzmann", "k": 3},
    "overall": {"method": "top-k-overall", "k": 9},
    "latest": {"method": "top-k", "k": 2, "pool": "latest"},
    "mixed": {"method": "best-of-n", "pool": "mix", "quota": ("policy=2", "hot=1")},
    "far": {"method": "top-k", "k": 2, "diverse": 0.5},
    "some": {"method": "threshold", "threshold": 0.5, "scale": "min-max", "where": "score > -1"},
}


def bytes_of(run: Run, name: str) -> list[bytes]:
    return [part.read_bytes() for part in run.partition("selections", name).parts()]


def test_the_same_bytes_however_much_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scored_run(tmp_path / "run", scored(30, "policy", "hot"), parts=3)
    found = []
    for batch_rows in (1_000_000, 30, 7):
        monkeypatch.setattr(reader, "BATCH_ROWS", batch_rows)
        for name, asked in SPECS.items():
            select(run, SelectSpec(name=name, **asked), replace=True)
        found.append({name: bytes_of(run, name) for name in SPECS})
        assert not list(run.path.glob("_tmp-*"))
    assert found[0] == found[1] == found[2]


def test_the_same_bytes_on_any_number_of_threads(tmp_path: Path) -> None:
    for threads in (1, 2):
        run = scored_run(tmp_path / str(threads), scored(40, "policy", "hot"), parts=3)
        code = (
            "import sys; from prefdata import Run, SelectSpec, parallel, select; from prefdata.scored import reader\n"
            f"reader.BATCH_ROWS = 50; parallel.os.sched_getaffinity = lambda _: range({threads})\n"
            "for name, said in eval(sys.argv[2]).items(): select(Run(sys.argv[1]), SelectSpec(name=name, **said))"
        )
        env = {**os.environ, "POLARS_MAX_THREADS": str(threads)}
        subprocess.run([sys.executable, "-c", code, run.path, repr(SPECS)], env=env, check=True)
    for name in SPECS:
        assert bytes_of(Run(tmp_path / "1"), name) == bytes_of(Run(tmp_path / "2"), name)


def test_what_does_not_fit_waits_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sort spills to the run's own folder, which is cleared at the end."""
    monkeypatch.setattr(queries, "MEMORY", "60MB")
    dice, rows = random.Random(0), 400_000
    run = scored_run(tmp_path / "run", scored(1))
    one = pl.DataFrame(run.partition("scores", "reward").read())[0]
    keys = [f"{dice.getrandbits(80):020x}" for _ in range(rows)]
    many = one[[0] * rows].with_columns(
        candidate_id=pl.Series(keys), prompt_id=pl.Series([f"{dice.randrange(1000):020x}" for _ in range(rows)])
    )
    candidates = pl.DataFrame(run.partition("candidates", "policy").read())[[0] * rows]
    for table, name, frame in (
        ("candidates", "policy", candidates.with_columns(many["candidate_id"])),
        ("scores", "reward", many),
    ):
        partition = run.partition(table, name)
        lineage, success = partition.lineage(), partition.success()
        partition.rewrite(frame.to_arrow(), lineage, success.report)
    seen, left = 0, 0
    with opened(run) as batches:
        for batch in batches:
            seen, left = seen + batch.height, max(left, len(list(run.path.glob("_tmp-*/*"))))
    assert seen == rows
    assert left > 0
    assert not list(run.path.glob("_tmp-*"))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MEMORY", "1MB")
    run = scored_run(tmp_path / "run", random.Random(1).sample(scored(300), 1200))
    with pytest.raises(StorageError, match=r"^cannot read, sort or join scores"):
        select(run, SelectSpec())
    assert not (run.path / "selections/selector=rso-8").exists()


def test_killed_in_the_middle_nothing_stays(tmp_path: Path) -> None:
    """kill -9 while rows are decided about: the selection is not there, and the next command removes what was left."""
    run = scored_run(tmp_path / "run", scored(40))
    code = (
        "import sys, time; from prefdata import Run, SelectSpec, select; from prefdata.scored import reader\n"
        "reader.BATCH_ROWS, prepared = 20, reader.PromptBatches._prepared\n"
        "def slow(*given): time.sleep(0.2); return prepared(*given)\n"
        "reader.PromptBatches._prepared = slow; select(Run(sys.argv[1]), SelectSpec())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, run.path])
    deadline = time.monotonic() + 60
    while not list(run.path.glob("selections/_new-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run.path / "selections/selector=rso-8").exists()
    assert select(run, SelectSpec()).report.rows_in == 160
    assert not [*run.path.glob("_tmp-*"), *run.path.glob("selections/_new-*")]


def test_two_readers_at_once_in_one_process(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", scored(5, "policy", "hot"))
    with opened(run) as one, opened(run) as two:
        both = [(a.height, b.height) for a, b in zip(one, two, strict=True)]
    assert [sum(of_one) for of_one in zip(*both, strict=True)] == [40, 40]


def test_an_unfinished_table_may_have_rows_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written last counts."""
    monkeypatch.setattr(reader, "BATCH_ROWS", 2)
    rows = scored(3)
    run = scored_run(tmp_path / "run", rows)
    first, last = {**rows[0], "score": -9.0}, {**rows[0], "score": 9.0}
    write(run, "scores", "reward", [first, *rows[1:6], last], parts=3, done=False)
    frame = read(run)
    assert frame.height == 6
    assert frame.filter(pl.col("candidate_id") == rows[0]["candidate_id"])["score"].to_list() == [9.0]


def test_a_table_that_was_begun_and_no_more(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", scored(3))
    write(run, "scores", "reward", [], done=False)
    for where in (None, "score > 0 and prompts.split = 'train' and sampler = 'policy'"):
        assert read(run, where=where).height == 0
    write(run, "candidates", "policy", [])
    assert read(run, where="sample_index > 1").height == 0


@pytest.mark.parametrize("table", ["scores", "selections", "comparisons"])
def test_candidates_that_are_gone(tmp_path: Path, table: str) -> None:
    rows = scored(3)
    run = scored_run(tmp_path / "run", rows)
    select(run, SelectSpec(method="top-k", name="reward"))
    two = {"prompt_id": rows[0]["prompt_id"], "probability": 1.0, "verdict": "first", "order": "first-second"}
    firsts = [{**two, "first_id": a["candidate_id"], "second_id": rows[0]["candidate_id"]} for a in rows[1:4]]
    write(run, "comparisons", "reward", firsts)
    assert read(run, table).height == (4 if table == "comparisons" else 12)
    gone = sorted(row["candidate_id"] for row in rows[2:4])
    write(run, "candidates", "policy", [*rows[:2], *rows[4:]])
    message = f"{table}/reward names candidates that are not in .*first: ({gone[0]}|{gone[1]})"
    with pytest.raises(InputError, match=message):
        read(run, table)
    write(run, "candidates", "policy", [], done=False)
    with pytest.raises(InputError, match="are not in"):
        read(run, table)
    with pytest.raises(InputError, match="are not in"), opened(run, table) as batches:
        print(batches.parents)
    assert not list(run.path.glob("_tmp-*"))


def test_candidates_are_looked_for_only_where_their_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = scored(3)
    run = scored_run(tmp_path / "run", rows)
    with monkeypatch.context() as patched:
        patched.setattr(reader, "CandidateKeySet", never)
        assert read(run).height == 12
    write(run, "candidates", "policy", rows, parts=2)  # the same, in other files
    looked: list[int] = []
    real = reader.CandidateKeySet
    monkeypatch.setattr(reader, "CandidateKeySet", lambda some: looked.append(1) or real(some))
    assert read(run).height == 12
    assert looked


def test_candidates_of_two_samplers_are_one_and_found_by_either_name(tmp_path: Path) -> None:
    """Samplers that differ in a limit of length share the candidates that it does not cut off."""
    rows = [answer("p", i, float(i), sampler=sampler, law="same") for sampler in ("a", "b") for i in range(3)]
    rows.append(answer("p", 3, 3.0, sampler="b", law="other"))
    run = scored_run(tmp_path / "run", rows)
    write(run, "candidates", "b", [{**row, "law": "same"} for row in rows if row["sampler"] == "b"])
    write(run, "scores", "reward", [*rows[:3], rows[6]])
    for asked, found in (((), "aaab"), (("a",), "aaa"), (("b",), "bbbb"), (("a", "b"), "aaab")):
        frame = read(run, sampler=asked)
        assert "".join(frame.sort("sample_index")["sampler"]) == found
    assert read(run, where="sampler = 'b'")["excluded"].null_count() == 4
    with opened(run, extra_samplers=("b",)) as batches:
        assert batches.to_frame()["sampler"].to_list() == ["b"] * 4


def test_samplers_whose_candidates_are_added(tmp_path: Path) -> None:
    """With the score that the scorer gave, or none: `no_score` is no reason for these."""
    rows = [answer("p", i, float(i)) for i in range(3)]
    human = [
        answer("p", 0, 9.0, sampler="human"),
        answer("p", 1, None, sampler="human"),
        answer("q", 0, 1.0, sampler="human"),
    ]
    run = scored_run(tmp_path / "run", [*rows, *human])
    select(run, SelectSpec(method="top-k", k=2, sampler=("policy",), name="two"))
    unscored = answer("q", 1, None, sampler="human")
    write(run, "candidates", "human", [*human, unscored])
    frame = read(run, "selections", "two", extra_samplers=("human",)).sort("prompt_id", "sampler", "sample_index")
    found = {row["candidate_id"]: row for row in frame.to_dicts()}
    assert found.keys() == {row["candidate_id"] for row in (*rows[1:], *human, unscored)}
    assert [found[row["candidate_id"]]["score"] for row in (*human, unscored)] == [9.0, None, 1.0, None]
    assert frame["excluded"].null_count() == frame.height == 6
    assert read(run, "scores", extra_samplers=("human",))["candidate_id"].n_unique() == 7
    assert read(run, "scores", sampler=("policy",), extra_samplers=("human",)).height == 7
    with pytest.raises(UsageError, match="no candidates by a sampler 'nobody'"):
        read(run, extra_samplers=("nobody",))


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    """300 parts of one row each, in order and by turns, where a process may have 200 files."""
    for order in ("plain", "turns"):
        rows = scored(75)
        rows = rows if order == "plain" else sorted(rows, key=lambda row: row["sample_index"])
        run = scored_run(tmp_path / order, rows)
        write(run, "scores", "reward", rows, parts=300)
        code = (
            "import resource, sys; from prefdata import Run, SelectSpec, select\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
            "print(select(Run(sys.argv[1]), SelectSpec(method='best-of-n', name='x')).report.rows_out)"
        )
        done = subprocess.run([sys.executable, "-c", code, run.path], capture_output=True, text=True, check=True)
        assert done.stdout == "75\n"
