"""What messages and responses carry beyond text, and that the parts of older versions stay readable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from prefdata import ids
from prefdata.explore.sql import query
from prefdata.keyed_random import id_prefix64
from prefdata.pairs.explain import _find
from prefdata.scores.stream import item_of, with_prompts
from prefdata.specs import Spec
from prefdata.storage.queries import PromptBatchReader, matching_keys, merged_prompts, prompt_sources, read_prompts
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Partition, Run
from prefdata.storage.schemas import CANDIDATES, PROMPTS, TABLES, Table

USER = {"role": "user", "content": "When?"}
CALL = {"role": "assistant", "content": "", "tool_calls": '[{"function": {"name": "f", "arguments": {}}}]'}
RESULT = {"role": "tool", "content": "1960", "tool_call_id": "c1"}


class Made(Spec):
    """Stands for the step that made a table."""

    step = "made"


def fill(run: Run, table: str, name: str, rows: list[dict[str, Any]], contract: Table | None = None) -> None:
    part = Partition(run.path, contract or TABLES[table], name)
    part.begin(Lineage.of(Made()))
    part.append(part.table.from_rows(rows))
    part.finish(Report(step="made", unit="rows", rows_in=len(rows), rows_out=len(rows)))


def prompt(messages: list[dict[str, Any]], number: int | None = None, **more: Any) -> dict[str, Any]:
    key = ids.prompt_id(messages)
    return {"prompt_id": key, "messages": messages, "tags": [], "split": "train", "source_number": number, **more}


def candidate(key: str, text: str, **more: Any) -> dict[str, Any]:
    row = {"prompt_id": key, "sample_index": 0, "text": text, "status": "ok", "model": "m", "engine": "e", "round": 0}
    return {**row, "candidate_id": ids.candidate_id(key, text, 0), **more}


def of_version(table: str, version: int, without: tuple[str, ...] = ()) -> Table:
    """The contract of a table in another version, with fewer columns."""
    columns = tuple(column for column in TABLES[table].columns if column["name"] not in without)
    return replace(TABLES[table], version=version, columns=columns)


def fill_old(run: Run, message: dict[str, Any] = USER) -> str:
    """A prompt with one candidate as the version before had them; the prompt's id."""
    older = of_version("prompts", TABLES["prompts"].version - 1, ("references", "source_number"))
    row = prompt([message], reference="1960")
    row.pop("source_number")
    fill(run, "prompts", "old", [row], older)
    older = of_version("candidates", TABLES["candidates"].version - 1, ("message", "metadata"))
    older = replace(older, columns=tuple({**c, "of": ["text"]} if "of" in c else c for c in older.columns))
    fill(run, "candidates", "old", [candidate(row["prompt_id"], "A")], older)
    return str(row["prompt_id"])


def test_the_id_of_a_plain_prompt_is_what_it_was() -> None:
    """Null keys and loss weights do not enter it; what a template shows does (golden vector of tests/golden)."""
    plain = [{"role": "user", "content": "Hi 🎬"}]
    assert ids.prompt_id(plain) == "89767a967fa2f25c87b5"
    assert ids.prompt_id([{**plain[0], "tool_calls": None, "name": None, "weight": 0.0}]) == "89767a967fa2f25c87b5"
    shown = {"tool_calls": "[]", "tool_call_id": "c", "name": "n", "reasoning_content": "r", "prefill": True}
    assert (
        len({ids.prompt_id([{**plain[0], key: value}]) for key, value in shown.items()} | {ids.prompt_id(plain)}) == 6
    )


def test_message_keys_that_no_row_has_are_not_stored(tmp_path: Path) -> None:
    """SQL and trainers see role and content of plain prompts, and of others the keys that there are."""
    run = Run(tmp_path)
    fill(run, "prompts", "plain", [prompt([USER])])
    fill(run, "prompts", "tools", [prompt([USER, CALL, RESULT])])
    stored = [
        pq.read_schema(run.partition("prompts", name).parts()[0]).field("messages").type for name in ("plain", "tools")
    ]
    assert [[field.name for field in kind.value_type] for kind in stored] == [
        ["role", "content"],
        ["role", "content", "tool_calls", "tool_call_id"],
    ]
    assert run.partition("prompts", "plain").read().schema.equals(PROMPTS.schema)
    turns = [
        turn for row in query(run, "select messages from prompts order by all").to_pylist() for turn in row["messages"]
    ]
    assert [turn["role"] for turn in turns] == ["user", "user", "assistant", "tool"]
    said = [rows for _, rows in PromptBatchReader(run)]
    assert [row["messages"] for rows in said for row in rows] == [[USER], [USER, CALL, RESULT]]


def test_a_run_of_the_version_before_is_read(tmp_path: Path) -> None:
    """Old parts beside new ones: every reader gives the new columns, as nulls."""
    run = Run(tmp_path)
    other = [{"role": "user", "content": "Who?"}]
    key = fill_old(run)
    fill(run, "prompts", "new", [prompt([USER, CALL, RESULT], 1), prompt(other, 1)])
    fill(run, "candidates", "new", [candidate(key, "B", message=json.dumps({"role": "assistant", "content": "B"}))])
    assert [source.name for source in prompt_sources(run)] == ["old", "new"]
    assert read_prompts(run).select("reference", "references").rows() == [("1960", None), (None, None), (None, None)]
    assert len(PromptBatchReader(run)) == 3
    assert query(run, "select count(*) as n, count(message) as m from candidates").to_pylist() == [{"n": 2, "m": 1}]
    wanted = matching_keys({"prompts": run.all("prompts")}, "prompt_id", ["prompts"], "source_number is null")
    assert list(wanted) == list(id_prefix64(pl.Series([key])))
    rows = [row for one in run.all("candidates") for row in one.read().to_pylist()]
    items = [item_of(row) for row in with_prompts(run, [{**row, "finish_reason": None} for row in rows])]
    assert [(item.messages, item.reference) for item in items] == [((USER,), "1960")] * 2
    assert {_find(run, row["candidate_id"])[1] for row in rows} == {key}
    frame = CANDIDATES.scan([part for one in run.all("candidates") for part in one.parts()]).collect()
    assert sorted(frame["text"]) == ["A", "B"]


def test_a_run_with_nothing_newer_than_the_version_before_is_queried(tmp_path: Path) -> None:
    """The view of pairs with their texts asks for the number of a source, which old parts lack."""
    run = Run(tmp_path)
    key = fill_old(run)
    other = candidate(key, "B")
    fill(run, "candidates", "new", [other])
    sides = {"chosen_id": candidate(key, "A")["candidate_id"], "rejected_id": other["candidate_id"]}
    texts = {field.name: "x" for field in TABLES["pairs"].schema if not field.nullable}
    fill(run, "pairs", "p", [{**texts, **sides, "prompt_id": key, "probability": 1.0, "weight": 1.0, "verdict": "win"}])
    assert query(run, "select chosen, rejected from preferences").to_pylist() == [{"chosen": "A", "rejected": "B"}]
    assert query(run, 'select source_number, "references" from prompts').to_pylist() == [
        {"source_number": None, "references": None}
    ]


def test_of_a_prompt_in_several_sources_the_first_ingested_that_says_something_wins(tmp_path: Path) -> None:
    run = Run(tmp_path)
    fill(run, "prompts", "b", [prompt([USER], 1, tags=["x"], references=None)])
    first = {"reference": "one", "references": [{"text": "one", "source": "answer"}], "metadata": "{}"}
    fill(run, "prompts", "c", [prompt([USER], 2, tags=["y"], **first)])
    last = {"reference": "two", "references": [{"text": "two", "source": None}, {"text": "one", "source": "answer"}]}
    fill(run, "prompts", "a", [prompt([USER], 3, tags=[], metadata='{"id": 3}', **last)])
    row = read_prompts(run).row(0, named=True)
    assert (row["reference"], row["tags"], row["metadata"], row["source_number"]) == ("one", ["x"], "{}", 1)
    assert row["references"] == [{"text": "one", "source": "answer"}, {"text": "two", "source": None}]


def test_merging_keeps_the_order_and_needs_no_columns_that_were_not_read() -> None:
    frame = pl.DataFrame({"prompt_id": ["b", "a", "b"], "reference": [None, "r", "s"]})
    assert merged_prompts(frame).rows() == [("b", "s"), ("a", "r")]


@pytest.mark.parametrize(
    ("row", "key", "chars"),
    [
        ({"text": " a  b "}, ids.text_key("a b"), 4),
        ({"text": "", "message": '{"tool_calls": []}'}, ids.text_key('{"tool_calls": []}'), 18),
        ({"text": None}, ids.text_key(""), 0),
    ],
)
def test_a_response_that_is_more_than_text_is_told_apart_by_its_message(row: dict, key: int, chars: int) -> None:
    """Two calls of a tool have the same empty text, and are neither empty nor the same response."""
    table = CANDIDATES.from_rows([{**candidate("p", "x"), "message": None, **row}])
    assert (table["text_key"][0].as_py(), table["chars"][0].as_py()) == (key, chars)


def test_no_other_version_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    fill(run, "prompts", "a", [prompt([USER])], of_version("prompts", 3))
    with pytest.raises(Exception, match="has version 3 of the prompts contract, and this prefdata reads version 2"):
        read_prompts(run)
