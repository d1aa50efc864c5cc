"""sql: views and joins, and that a query can only read, and only the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prefdata.errors import InputError, NotReady, UsageError
from prefdata.explore.sql import query, tables
from prefdata.storage.run import Run


def rows(run: Run, sql: str) -> list[tuple]:
    return [tuple(row.values()) for row in query(run, sql).to_pylist()]


def test_one_view_a_table_with_its_partition_as_a_column(run: Run) -> None:
    assert rows(run, "select sampler, count(*) from candidates group by 1 order by 1") == [
        ("policy", 12),
        ("tuned", 12),
    ]
    assert rows(run, "select distinct scorer from scores") == [("rm",)]
    names = [row["view"] for row in tables(run).to_pylist()]
    assert names == ["prompts", "candidates", "scores", "selections", "pairs", "answers", "preferences"]


def test_joins(run: Run) -> None:
    sql = "select prompt, text, score from answers where sampler = 'tuned' and split = 'test' order by score"
    assert rows(run, sql)[-1] == ("Question 3?", "tuned answers 3 in draw 2.", 8.0)
    sql = "select prompt, chosen, rejected, margin from preferences order by prompt limit 1"
    assert rows(run, sql) == [("Question 0?", "policy answers 0 in draw 1.", "policy answers 0 in draw 0.", 2.0)]


def test_what_stands_twice_multiplies_nothing(run: Run) -> None:
    """A prompt of two sources, and an answer that two samplers drew by the same law."""
    counts = {view: rows(run, f"select count(*) from {view}")[0][0] for view in ("answers", "preferences")}
    (source,) = run.partitions("prompts")
    shutil.copytree(source.path, source.path.with_name("source=twice"))
    assert {view: rows(run, f"select count(*) from {view}")[0][0] for view in counts} == counts
    assert rows(run, "select count(*) from prompts") == [(2 * 4,)]
    shutil.copytree(run.path / "candidates/sampler=policy", run.path / "candidates/sampler=same-law")
    assert rows(run, "select count(*), min(chosen_sampler), max(chosen_sampler) from preferences") == [
        (counts["preferences"], "policy", "policy")
    ]


def test_a_name_that_looks_like_a_number_stays_text(run: Run) -> None:
    (run.path / "scores/scorer=rm").rename(run.path / "scores/scorer=2024")
    assert rows(run, "select distinct scorer from scores") == [("2024",)]


def test_columns_of_one_name_are_numbered(run: Run) -> None:
    sql = "select a.text, b.text, 3 as text_1, a.text from candidates a join candidates b using (candidate_id) limit 1"
    assert query(run, sql).column_names == ["text", "text_2", "text_1", "text_3"]
    twice = query(run, "select prompt_id, * from prompts")
    assert twice.column_names[:2] == ["prompt_id", "prompt_id_1"]
    assert twice["prompt_id"] == twice["prompt_id_1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("interval 1 day", "1 day"),
        ("[interval 1 day]", "[1 day]"),
        ("{'a': {'b': interval 1 day}}", "{'a': {'b': 1 day}}"),
        ("timetz '10:00:00+02'", "10:00:00+02"),
        ("'0101'::bit", "0101"),
        (f"{2**128 - 1}::uhugeint", str(2**128 - 1)),
        (f"{10**60}::bignum", str(10**60)),
        ("union_value(number := 1)", "1"),
    ],
)
def test_types_that_arrow_has_not_come_as_text(run: Run, value: str, text: str) -> None:
    assert query(run, f"select {value} as x, 1 as y").to_pylist() == [{"x": text, "y": 1}]


def test_a_damaged_part_is_named(run: Run) -> None:
    (part,) = (run.path / "scores/scorer=rm").glob("part-*")
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(InputError, match=f"{part} is damaged"):
        query(run, "select * from scores")


@pytest.mark.parametrize(
    "sql",
    [
        "drop view prompts",
        "create table x as select 1",
        "copy (select 1) to 'RUN/x.csv'",
        "attach 'RUN/x.db'",
        "set enable_external_access = true",
        "install httpfs",
        "select 1; select 2",
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from read_parquet('/tmp/*.parquet')",
        "selct 1",
        "",
    ],
)
def test_what_is_refused(run: Run, sql: str) -> None:
    before = sorted(run.path.rglob("*"))
    with pytest.raises(UsageError):
        query(run, sql.replace("RUN", str(run.path)))
    assert sorted(run.path.rglob("*")) == before


def test_tables_that_are_not_there_yet(run: Run, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"no comparisons yet: run `prefdata rank"):
        query(run, "select * from comparisons")
    with pytest.raises(NotReady, match="no run"):
        query(Run(tmp_path / "nowhere"), "select 1")
    empty = Run(tmp_path / "empty")
    empty.path.mkdir()
    with pytest.raises(NotReady, match=r"no prompts yet: run `prefdata ingest"):
        query(empty, "select * from preferences")


def test_a_run_whose_path_has_quotes_and_stars(tmp_path: Path, run: Run) -> None:
    odd = tmp_path / "o'hara [1] *"
    run.path.rename(odd)
    assert rows(Run(odd), "select count(*) from prompts") == [(4,)]


@pytest.mark.parametrize("end", ["", ";", "; -- hi", ";\n-- end\n", " -- hi", "; /* x */ "])
def test_a_query_may_end_in_a_comment(run: Run, end: str) -> None:
    assert rows(run, f"select '🎬;' as film, 1{end}") == [("🎬;", 1)]
