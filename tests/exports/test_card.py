"""The dataset card: the notation that `datasets` itself uses, counts, and only tags that are true."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import yaml

from prefdata.exports.card import Card
from prefdata.exports.shards import Split
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage

MESSAGE = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("tool_calls", pa.json_()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.list_(MESSAGE), metadata={"description": "The conversation."}),
        pa.field("chosen", MESSAGE, metadata={"description": "The preferred response."}),
        pa.field("completions", pa.list_(pa.list_(MESSAGE)), metadata={"description": "Responses."}),
        pa.field("scores", pa.list_(pa.float64()), metadata={"description": "Their scores."}),
        pa.field("label", pa.bool_(), metadata={"description": "Whether it is good."}),
        pa.field("place", pa.struct([("split", pa.string())]), metadata={"description": "Where it is from."}),
    ]
)


def a_card(*, license: str | None = None, step: str = "pair", spec: dict[str, Any] | None = None) -> str:
    lineage = Lineage(step=step, spec=spec or {"strategy": "all"}, fingerprint="f0", versions={"prefdata": "1.2"})
    return Card("films", "Preferences.", ("preference", "dpo", "trl"), license=license).text(
        SCHEMA,
        {"train": Split(1200, 5000, 2_000_000, 3), "test": Split(2, 50, 20, 1)},
        [("pairs/all", lineage)],
        Report(step="export", unit="pairs", rows_in=1203, rows_out=1202, dropped={"not_the_best": 1}),
    )


def front(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_writes_features_as_datasets_does() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(SCHEMA)
    assert front(a_card())["dataset_info"]["features"] == features._to_yaml_list()
    assert datasets.Features._from_yaml_list(front(a_card())["dataset_info"]["features"]) == features


def test_the_card() -> None:
    text = a_card()
    said = front(text)
    assert said["license"] == "unknown"
    assert front(a_card(license="apache-2.0"))["license"] == "apache-2.0"
    assert said["size_categories"] == ["1K<n<10K"]
    assert said["tags"] == ["prefdata", "preference", "dpo", "trl"]
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
    for field in SCHEMA:
        assert f"| {field.name} | " in text
        assert field.metadata[b"description"].decode() in text


def test_what_a_model_made_is_called_synthetic_and_nothing_else_is() -> None:
    assert "synthetic" in front(a_card(step="sample"))["tags"]
    assert "synthetic" not in front(a_card(step="ingest"))["tags"]


def test_nothing_in_a_spec_closes_the_block_it_stands_in() -> None:
    text = a_card(spec={"system": "\n```\n# Not a heading\n---\n"})
    assert "\n# Not a heading" not in text
    assert text.count("\n```") == 4  # two blocks, opened and closed
