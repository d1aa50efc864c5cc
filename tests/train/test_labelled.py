"""What rows and runs say of single responses: labels, ratings and safety, of any layout that is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefdata.ids import candidate_id, prompt_id
from prefdata.specs import Spec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import CANDIDATES, GROUPS, PROMPTS, TABLES, UNPAIRED
from prefdata.train.data import open_source
from prefdata.train.parsing import Item, ItemStream, Kind, Needs


def read(path: Path | Run, kind: Kind, **needs: Any) -> tuple[list[Item], ItemStream]:
    stream = open_source(path.path if isinstance(path, Run) else path, kind).items(Needs(kind, **needs))
    return list(stream), stream


def ratings(items: list[Item]) -> list[list[float]]:
    return [[one[0] for one in item.ratings or ()] for item in items]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"completions": ["a", "b"], "scores": [1, 2.5]}, [1.0, 2.5]),
        ({"responses": ["a", "b"], "rating": [3, 4]}, [3.0, 4.0]),
        ({"responses": [{"response": "a", "score": 0.5}, {"response": "b", "score": 0.25}]}, [0.5, 0.25]),
        ({"responses": ["a", "b", "c"], "ranks": [2, 1, 3]}, [-2.0, -1.0, -3.0]),
        ({"chosen": "a", "rejected": "b"}, [1.0, 0.0]),
        ({"chosen": "a", "rejected": ["b", "c"]}, [1.0, 0.0, 0.0]),
        ({"chosen": "a", "rejected": "b", "chosen_score": 9, "rejected_score": 7}, [9.0, 7.0]),
    ],
)
def test_groups_of_files(row: dict[str, Any], expected: list[float], tmp_path: Path, write_jsonl: Any) -> None:
    items, _ = read(write_jsonl(tmp_path / "g.jsonl", [{"prompt": "Name a film.", **row}]), "groups")
    assert ratings(items) == [expected]
    assert len(items[0].answers) == len(expected)


def test_named_scores_and_what_has_none(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [
        {"prompt": "p", "completions": ["a", "b", ""], "loss": [3, 1, 2]},
        {"prompt": "q", "completions": ["a", "b", "c"], "loss": [3, None, 2]},
        {"prompt": "r", "completions": ["a", "b"], "loss": [None, None]},
    ]
    items, stream = read(write_jsonl(tmp_path / "g.jsonl", rows), "groups", ratings=("-loss",))
    assert ratings(items) == [[-3.0, -1.0], [-3.0, -2.0]]
    assert stream.left_out == {"empty_responses": 1, "responses_without_score": 3}
    assert stream.skipped == {"no_score": 1}


def test_rated_responses(tmp_path: Path, write_jsonl: Any) -> None:
    """One item for each response; an attribute that is null is no number."""
    rows = [
        {"prompt": "p", "completion": "a", "helpful": 4, "clear": None},
        {"prompt": "q", "response": "b", "helpful": 1, "clear": 2},
    ]
    items, _ = read(write_jsonl(tmp_path / "r.jsonl", rows), "rated", ratings=("helpful", "clear"))
    (first,), (second,) = (item.ratings or () for item in items)
    assert first[0] == 4.0
    assert math.isnan(first[1])
    assert second == (1.0, 2.0)
    several = [{"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}]
    items, _ = read(write_jsonl(tmp_path / "s.jsonl", several), "rated")
    assert ratings(items) == [[1.0], [2.0]]


def test_labels_of_files(tmp_path: Path, write_jsonl: Any) -> None:
    """Labels in any spelling that ingest reads; chosen is good and rejected bad; ties are counted."""
    rows = [{"prompt": "p", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": 0}]
    items, _ = read(write_jsonl(tmp_path / "l.jsonl", rows), "unpaired")
    assert [item.label for item in items] == [True, False]
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "verdict": "first"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "verdict": "tie"},
    ]
    items, stream = read(write_jsonl(tmp_path / "p.jsonl", rows), "unpaired")
    assert [(item.answers[0], item.label) for item in items] == [("a", True), ("b", False)]
    assert stream.skipped == {"tie": 1}


def test_safety_of_sides(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "chosen_safe": True, "rejected_safe": None}]
    items, _ = read(write_jsonl(tmp_path / "s.jsonl", rows), "preferences", safety=True)
    (good, unknown) = items[0].ratings or ()
    assert good == (1.0,)
    assert math.isnan(unknown[0])
    pku = {
        "prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": False, "is_response_1_safe": True,
        "better_response_id": 1, "safer_response_id": 1,
    }  # fmt: skip
    source = open_source(write_jsonl(tmp_path / "k.jsonl", [pku]), "preferences")
    from prefdata.formats.reading import ReadOptions

    (item,) = source.items(Needs("preferences", safety=True), ReadOptions(verdict="better"))
    assert item.ratings == ((1.0,), (0.0,))


class Made(Spec):
    """Stands for the step that made a table."""

    step = "made"


def fill(run: Run, table: str, name: str, rows: list[dict[str, Any]]) -> None:
    part = run.partition(table, name)
    part.begin(Lineage.of(Made()))
    zero = {"id": "", "text": "", "int32": 0, "int64": 0, "float64": 0.0, "strings": [], "tokens": [], "messages": []}
    blank = {c["name"]: zero.get(c["type"], "") for c in TABLES[table].columns if not c.get("nullable")}
    part.append(pa.Table.from_pylist([{**blank, **row} for row in rows], schema=TABLES[table].schema))
    part.finish(Report(step="made", unit="rows", rows_in=len(rows), rows_out=len(rows)))


def test_groups_and_labels_of_a_run(tmp_path: Path) -> None:
    """Joined by id, in the order of the group; a test prompt stays one."""
    run = Run(tmp_path / "run")
    prompts, candidates, groups, labels = [], [], [], []
    for i, split in enumerate(("train", "test")):
        messages = [{"role": "user", "content": f"Film {i}"}]
        asked = prompt_id(messages)
        prompts.append({"prompt_id": asked, "messages": messages, "split": split})
        ids = [candidate_id(asked, "sampler", k) for k in range(3)]
        candidates += [{"candidate_id": one, "prompt_id": asked, "text": f"{i} {k}"} for k, one in enumerate(ids)]
        best_first = [ids[2], ids[0], ids[1]]
        groups.append({"prompt_id": asked, "candidate_ids": best_first, "scores": [3.0, 1.0, 1.0], "ranks": [1, 2, 2]})
        labels += [
            {"candidate_id": one, "prompt_id": asked, "good": k == 2, "weight": 1.0 + k} for k, one in enumerate(ids)
        ]
    for table, rows in ((PROMPTS, prompts), (CANDIDATES, candidates), (GROUPS, groups), (UNPAIRED, labels)):
        fill(run, table.name, "made", rows)
    items, _ = read(run, "groups")
    found = {item.row.split: ([turns[0]["content"] for turns in item.answers], ratings([item])[0]) for item in items}
    assert found == {
        "train": (["0 2", "0 0", "0 1"], [3.0, 1.0, 1.0]),
        "test": (["1 2", "1 0", "1 1"], [3.0, 1.0, 1.0]),
    }
    items, _ = read(run, "unpaired")
    train = [item for item in items if item.row.split == "train"]
    assert {(item.answers[0][0]["content"], item.label, item.weight) for item in train} == {
        ("0 0", False, 1.0), ("0 1", False, 2.0), ("0 2", True, 3.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "row", "needs"),
    [
        ("unpaired", {"completion": "a", "label": True, "weight": 2}, {}),
        ("rated", {"completion": "a", "helpful": 4, "deep": {"clear": 1}}, {"ratings": ("helpful", "deep.clear")}),
        ("rated", {"completion": "a", "score": 4, "weight": 2}, {}),
        ("groups", {"completions": ["a", "b"], "scores": [1, 2], "weight": 2}, {}),
        ("groups", {"completions": ["a", "b"], "place": [1, 2]}, {"ratings": ("-place",)}),
        ("demonstrations", {"completion": "a", "label": True, "weight": 2}, {}),
    ],
)
def test_a_column_that_trains_is_never_reported_as_not_used(
    kind: Kind, row, needs, tmp_path: Path, write_jsonl: Any
) -> None:
    """Only `other` is not used; labels, ratings and weights are, although `ingest` keeps them as metadata."""
    _, stream = read(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "q", **row, "other": 1}]), kind, **needs)
    assert stream.figures()["not_used"] == "other"
