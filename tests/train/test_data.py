"""Reading a run directory: pairs joined by id, the splits kept apart, the right answers imitated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefdata.errors import BadRows, InputError, NotReady, UsageError
from prefdata.ids import candidate_id, pair_id, prompt_id
from prefdata.specs import Spec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import CANDIDATES, DEMONSTRATIONS, PAIRS, PROMPTS, SELECTIONS, TABLES
from prefdata.train.data import open_source
from prefdata.train.parsing import Item, Row, parse
from prefdata.train.specs import DpoSpec, SftSpec
from prefdata.train.train import train_dpo, train_sft


class Made(Spec):
    """Stands for the step that made a table."""

    step = "made"


def fill(run: Run, table: str, name: str, rows: list[dict[str, Any]], *, finish: bool = True) -> None:
    part = run.partition(table, name)
    part.begin(Lineage.of(Made()))
    part.append(pa.Table.from_pylist(rows, schema=TABLES[table].schema))
    if finish:
        part.finish(Report(step="made", unit="rows", rows_in=len(rows), rows_out=len(rows)))


def defaults(table: Any) -> dict[str, Any]:
    """A value for every column that may not be null."""
    zero = {"id": "", "text": "", "int32": 0, "int64": 0, "float64": 0.0, "strings": [], "tokens": [], "messages": []}
    return {c["name"]: zero.get(c["type"], "") for c in table.columns if not c.get("nullable")}


TEXTS = [f"Film {i}" for i in range(10)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Ten prompts in two sources (8 train, 2 test), four answers each by two samplers, a pair and a selection each."""
    made = Run(tmp_path / "run")
    prompts, candidates, pairs, selections = [], [], [], []
    for i, text in enumerate(TEXTS):
        messages = [{"role": "user", "content": text}]
        asked = prompt_id(messages)
        split = "test" if i >= 8 else "train"
        reference = f"reference {i}" if i % 2 else None
        row = {"prompt_id": asked, "messages": messages, "reference": reference, "split": split}
        prompts.append({**defaults(PROMPTS), **row})
        ids = [candidate_id(asked, "sampler", k) for k in range(4)]
        for k, name in enumerate(ids):
            said = {"candidate_id": name, "prompt_id": asked, "sample_index": k, "text": f"answer {k} to {i}"}
            candidates.append({**defaults(CANDIDATES), **said})
        chosen, rejected = ids[i % 4], ids[(i + 1) % 4]
        joined = {
            "pair_id": pair_id(chosen, rejected),
            "prompt_id": asked,
            "chosen_id": chosen,
            "rejected_id": rejected,
        }
        pairs.append({**defaults(PAIRS), **joined, "margin": float(i + 1), "weight": 1.0 + i, "probability": 0.9})
        for rank, name in enumerate((ids[3], ids[0]), 1):
            kept = {"candidate_id": name, "prompt_id": asked, "rank": rank}
            selections.append({**defaults(SELECTIONS), **kept})
    fill(made, "prompts", "a", prompts[:5])
    fill(made, "prompts", "b", prompts[5:])
    fill(made, "candidates", "one", candidates[::2])
    fill(made, "candidates", "two", candidates[1::2])
    fill(made, "pairs", "best", pairs)
    fill(made, "selections", "top", selections)
    return made


def read(run: Run, kind: Any, part: str | None = None) -> list[Item]:
    source = open_source(run.path, kind, part=part)
    return parse(source.read(), kind, source.name)


def number(item: Item) -> int:
    return TEXTS.index(item.prompt[0]["content"])  # type: ignore[index]


def test_pairs_are_joined_by_id(run: Run) -> None:
    items = read(run, "preferences")
    assert sorted(map(number, items)) == list(range(10))
    for item in items:
        i = number(item)
        texts = [answer[0]["content"] for answer in item.answers]  # type: ignore[index]
        assert texts == [f"answer {i % 4} to {i}", f"answer {(i + 1) % 4} to {i}"]
        assert (item.margin, item.weight) == (i + 1.0, i + 1.0)
        assert item.row.split == ("test" if i >= 8 else "train")
        assert item.row.file == "pairs/best"


def test_the_order_comes_from_keys_and_not_from_parts(run: Run, tmp_path: Path) -> None:
    rows = run.only("pairs").read()
    other = Run(tmp_path / "other")
    for table in ("prompts", "candidates"):
        for part in run.partitions(table):
            fill(other, table, part.name, part.read().to_pylist()[::-1])
    fill(other, "pairs", "best", rows.to_pylist()[::-1])
    assert list(map(number, read(other, "preferences"))) == list(map(number, read(run, "preferences")))


def test_sft_imitates_the_first_of_each_selection(run: Run) -> None:
    items = read(run, "demonstrations")
    assert len(items) == 10
    assert all(item.answers[0][0]["content"] == f"answer 3 to {number(item)}" for item in items)  # type: ignore[index]


def test_sft_without_selections_imitates_references(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    fill(other, "prompts", "all", run.only("prompts", "a").read().to_pylist())
    items = read(other, "demonstrations")
    assert sorted(map(number, items)) == [1, 3]
    assert all(item.answers[0][0]["content"] == f"reference {number(item)}" for item in items)  # type: ignore[index]
    fill(
        Run(tmp_path / "none"),
        "prompts",
        "all",
        [{**run.only("prompts", "a").read().to_pylist()[0], "reference": None}],
    )
    with pytest.raises(NotReady, match="run `prefdata select"):
        read(Run(tmp_path / "none"), "demonstrations")


def demonstrated(run: Run, name: str) -> None:
    """All four answers of each prompt, the k-th drawn k + 1 times."""
    rows = run.only("candidates", "one").read().to_pylist() + run.only("candidates", "two").read().to_pylist()
    fill(
        run,
        "demonstrations",
        name,
        [
            {**defaults(DEMONSTRATIONS), **{key: row[key] for key in ("candidate_id", "prompt_id")}}
            | {"rank": row["sample_index"] + 1, "weight": row["sample_index"] + 1.0}
            for row in rows
        ],
    )


def test_sft_imitates_every_demonstration_that_is_named(run: Run, tmp_path: Path) -> None:
    demonstrated(run, "drawn")
    assert len(read(run, "demonstrations")) == 10  # the selection, as before
    source = open_source(run.path, "demonstrations", demonstrations="drawn")
    items = parse(source.read(), "demonstrations", source.name)
    said = {(number(item), item.answers[0][0]["content"], item.weight) for item in items}  # type: ignore[index]
    assert said == {(i, f"answer {k} to {i}", k + 1.0) for i in range(10) for k in range(4)}
    assert len(items) == 40
    shutil.rmtree(run.path / "selections")
    assert len(read(run, "demonstrations")) == 40
    with pytest.raises(UsageError, match="has no demonstrations named 'drwan'"):
        open_source(run.path, "demonstrations", demonstrations="drwan")


def test_training_on_demonstrations(run: Run, tiny_policy: Path) -> None:
    demonstrated(run, "drawn")
    spec = SftSpec(model=str(tiny_policy), input="drawn")
    report = train_sft(run.path, spec, run.path / "models" / "sft").report
    assert (report.rows_in, report.rows_out, report.dropped) == (40, 32, {"held_out": 8})
    with pytest.raises(UsageError, match="--selector and --input name two things"):
        SftSpec.parse({"model": "m", "selector": "a", "input": "b"})


def test_ties_are_not_trained_on(run: Run, tiny_policy: Path) -> None:
    pairs = run.only("pairs").read().to_pylist()
    for row in pairs[:3]:
        row.update(verdict="tie", margin=0.0, probability=0.5)
    fill(run, "pairs", "judged", pairs)
    assert len(read(run, "preferences", "judged")) == 7
    held_out = sum(item.row.split == "test" for item in read(run, "preferences", "judged"))
    spec = DpoSpec(model=str(tiny_policy), lr=1e-3, pairing="judged", soft_labels=True)
    report = train_dpo(run.path, spec, run.path / "models" / "dpo").report
    assert (report.rows_in, report.rows_out) == (10, 7 - held_out)
    assert report.dropped == {"held_out": held_out, "tie": 3}


def test_the_set_is_named_where_there_are_several(run: Run) -> None:
    fill(run, "pairs", "other", run.only("pairs").read().to_pylist()[:3])
    with pytest.raises(UsageError, match="2 sets of pairs"):
        open_source(run.path, "preferences")
    assert len(read(run, "preferences", "other")) == 3


def test_not_ready(run: Run, tmp_path: Path) -> None:
    fill(Run(tmp_path / "early"), "prompts", "a", run.only("prompts", "a").read().to_pylist())
    with pytest.raises(NotReady, match="has no pairs yet: run `prefdata pair"):
        open_source(tmp_path / "early", "preferences")
    fill(run, "pairs", "half", [], finish=False)
    with pytest.raises(NotReady, match="pairs/half is unfinished"):
        open_source(run.path, "preferences", part="half")


def test_a_pair_whose_candidate_is_gone(run: Run) -> None:
    fill(run, "pairs", "lost", [{**run.only("pairs").read().to_pylist()[0], "chosen_id": "gone"}])
    with pytest.raises(InputError, match="pairs/lost names candidate_id gone"):
        read(run, "preferences", "lost")


def test_training_from_a_run(run: Run, tiny_policy: Path) -> None:
    out = run.path / "models" / "dpo"
    report = train_dpo(run.path, DpoSpec(model=str(tiny_policy), lr=1e-3), out).report
    assert (report.rows_in, report.rows_out, report.dropped) == (10, 8, {"held_out": 2})
    assert len(list((run.path / "_reference").glob("*.parquet"))) == 2
    report = train_sft(run.path, SftSpec(model=str(tiny_policy), selector="top"), run.path / "models" / "sft").report
    assert (report.unit, report.rows_out) == ("conversations", 8)


@pytest.mark.parametrize(
    ("asked", "column"), [({"need_probability": True}, "probability"), ({"need_margin": True}, "margin")]
)
def test_a_column_that_a_setting_asks_for_and_nobody_wrote(asked: dict[str, bool], column: str) -> None:
    """One line about the column, not one about each of a thousand rows."""
    rows = [Row("export", i, "train", {"prompt": "q", "chosen": "a", "rejected": "b"}) for i in range(1, 1000)]
    with pytest.raises(InputError, match=f"export has no column {column}, which --") as refused:
        parse(rows, "preferences", "export", **asked)
    assert not isinstance(refused.value, BadRows)
