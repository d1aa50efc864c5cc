"""Dialects and their card: exact columns, exact values, and the notation that `datasets` itself uses."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml

from prefdata.formats.card import Split, dataset_card
from prefdata.formats.dialects import DIALECTS
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage

USER = {"role": "user", "content": "Hi\r\n\x00🙂"}
TURNS = [{"role": "system", "content": "Be brief"}, USER]


def pair(**changes: Any) -> dict[str, Any]:
    return {
        "messages": TURNS,
        "tools": None,
        "chosen": "good",
        "rejected": "bad",
        "chosen_score": 1.5,
        "rejected_score": None,
        "margin": None,
        "probability": 0.75,
        "weight": 1.0,
        "pair_id": "p",
        "prompt_id": "q",
        "chosen_id": "c",
        "rejected_id": "r",
        "split": "train",
    } | changes


PAIR_TYPES = {"tools": pl.String, "rejected_score": pl.Float64, "margin": pl.Float64}


def joined(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides=PAIR_TYPES if "margin" in rows[0] else {"tools": pl.String})


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_trl_rows() -> None:
    rows = DIALECTS["trl"].rows(joined(pair(), pair(chosen_score=3.0, rejected_score=1.0, margin=2.0)))
    assert rows.to_pylist()[0] == {
        "prompt": TURNS,
        "chosen": said("good"),
        "rejected": said("bad"),
        "chosen_score": 1.5,
        "rejected_score": None,
        "score_margin": None,
        "probability": 0.75,
        "weight": 1.0,
        "pair_id": "p",
        "prompt_id": "q",
        "chosen_id": "c",
        "rejected_id": "r",
    }
    assert rows["score_margin"].to_pylist() == [None, 2.0]
    assert rows.schema.field("prompt").type == pa.list_(
        pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])
    )


def test_no_dialect_writes_a_column_that_changes_a_trainer_unasked() -> None:
    for dialect in DIALECTS.values():
        assert "margin" not in dialect.schema(strict=False, tools=True).names


def test_strict_columns_and_tools() -> None:
    assert DIALECTS["trl"].rows(joined(pair()), strict=True).column_names == ["prompt", "chosen", "rejected"]
    with_tools = DIALECTS["trl"].rows(joined(pair(), pair(tools="[{}]")), strict=True)
    assert with_tools.column_names == ["prompt", "chosen", "rejected", "tools"]
    assert with_tools["tools"].to_pylist() == [None, "[{}]"]


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "messages": TURNS,
        "tools": None,
        "answer": "good",
        "score": 1.5,
        "prompt_id": "q",
        "candidate_id": "c",
        "split": "test",
    } | changes


def test_sft_rows() -> None:
    rows = DIALECTS["sft"].rows(joined(answer(), answer(messages=[USER])))
    assert rows.to_pylist() == [
        {"prompt": TURNS, "completion": said("good"), "score": 1.5, "prompt_id": "q", "candidate_id": "c"},
        {"prompt": [USER], "completion": said("good"), "score": 1.5, "prompt_id": "q", "candidate_id": "c"},
    ]
    assert DIALECTS["sft"].rows(joined(answer()), strict=True).column_names == ["prompt", "completion"]


def test_a_weight_is_written_where_the_table_has_one() -> None:
    assert DIALECTS["sft"].rows(joined(answer(weight=3.0)))["weight"].to_pylist() == [3.0]
    with pytest.raises(pl.exceptions.ColumnNotFoundError):  # what a trainer needs is never left out
        DIALECTS["kto"].rows(joined(answer(good=True)).drop("messages"))


def test_kto_rows() -> None:
    rows = DIALECTS["kto"].rows(joined(answer(good=True, weight=1.0), answer(good=False, weight=0.5)))
    ours = {"prompt": TURNS, "completion": said("good"), "score": 1.5, "prompt_id": "q", "candidate_id": "c"}
    assert rows.to_pylist() == [{**ours, "label": True, "weight": 1.0}, {**ours, "label": False, "weight": 0.5}]
    strict = DIALECTS["kto"].rows(joined(answer(good=True)), strict=True)
    assert strict.column_names == ["prompt", "completion", "label"]


def test_listwise_rows() -> None:
    ordered = {"answers": ["good", "", "bad"], "scores": [2.0, 1.0, 1.0], "ranks": [1, 2, 2]}
    rows = DIALECTS["listwise"].rows(joined(answer(**ordered, candidate_ids=["c", "d", "e"])))
    assert rows.to_pylist() == [
        {
            "prompt": TURNS,
            "completions": [said("good"), said(""), said("bad")],
            "scores": [2.0, 1.0, 1.0],
            "ranks": [1, 2, 2],
            "prompt_id": "q",
            "candidate_ids": ["c", "d", "e"],
        }
    ]


def a_card(name: str, *, license: str | None = None, spec: dict[str, Any] | None = None) -> str:
    lineage = Lineage(step="pair", spec=spec or {"strategy": "all"}, fingerprint="f0", versions={"prefdata": "1.2"})
    return dataset_card(
        "films",
        DIALECTS[name],
        DIALECTS[name].schema(strict=False, tools=True),
        {"train": Split(1200, 5000, 2_000_000, 3), "test": Split(2, 50, 20, 1)},
        [("pairs/all", lineage)],
        Report(step="export", unit="pairs", rows_in=1203, rows_out=1202, dropped={"not_the_best": 1}),
        license=license,
    )


def front(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


@pytest.mark.parametrize("name", DIALECTS)
def test_the_card_writes_features_as_datasets_does(name: str) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(DIALECTS[name].schema(strict=False, tools=True))
    assert front(a_card(name))["dataset_info"]["features"] == features._to_yaml_list()
    assert datasets.Features._from_yaml_list(front(a_card(name))["dataset_info"]["features"]) == features


def test_the_card() -> None:
    text = a_card("trl")
    said = front(text)
    assert said["license"] == "unknown"
    assert front(a_card("trl", license="apache-2.0"))["license"] == "apache-2.0"
    assert said["size_categories"] == ["1K<n<10K"]
    assert said["tags"] == ["prefdata", "synthetic", "preference", "dpo", "trl"]
    assert said["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/train-*"}, {"split": "test", "path": "data/test-*"}],
        }
    ]
    assert said["dataset_info"]["splits"] == [
        {"name": "train", "num_bytes": 5000, "num_examples": 1200},
        {"name": "test", "num_bytes": 50, "num_examples": 2},
    ]
    assert (said["dataset_info"]["download_size"], said["dataset_info"]["dataset_size"]) == (2_000_020, 5050)
    assert "| train | 1,200 | 3 | 2.0 MB |" in text
    assert "Of 1,203 pairs, 1,202 are here (1 not the best)." in text
    assert "1. `pairs/all`: the preferences, by `prefdata pair` (fingerprint `f0`; prefdata 1.2)" in text
    assert '"strategy": "all"' in text
    for field in DIALECTS["trl"].schema(strict=False, tools=True):
        assert f"| {field.name} | " in text
        assert field.metadata[b"description"].decode() in text


def test_nothing_in_a_spec_closes_the_block_it_stands_in() -> None:
    text = a_card("trl", spec={"system": "\n```\n# Not a heading\n---\n"})
    assert "\n# Not a heading" not in text
    assert text.count("\n```") == 4  # two blocks, opened and closed
