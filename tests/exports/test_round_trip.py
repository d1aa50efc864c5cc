"""Each dialect: what is exported is read by `ingest` as what it was, and by `datasets` as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prefdata.exports.export import export
from prefdata.exports.registry import dialects
from prefdata.pairs.pair import pair
from prefdata.prompts.ingest import ingest
from prefdata.specs import ExportSpec, IngestSpec, PairSpec
from prefdata.storage.queries import read_candidates, read_prompts
from prefdata.storage.run import Run

SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Name a play."}, {"role": "assistant", "content": "The Painter.\n"}]
CALL = [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"title": "robot", "year": 1960}}}]
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


PLAIN = [
    {"prompt": [user(f"Name film {n} 🙂\r\n\"quoted\", 日本語")], "chosen": [said(f" The Robot {n}.\n\n")],
     "rejected": [said(f"No {n}.")], "split": split}
    for n, split in enumerate(["train", "train", "test"])
]  # fmt: skip
TURNS = [{"prompt": [*EARLIER, user("Name a film.")], "chosen": [said("The Robot.")], "rejected": [said("No.")]}]
WITH_SYSTEM = [{**TURNS[0], "prompt": [SYSTEM, *EARLIER, user("And another?")]}]
REASONED = [
    {**TURNS[0], "prompt": [user("Think.")], "chosen": [said("Yes.", reasoning_content="It is so.")]},
]
CALLED = [
    {
        "prompt": [
            user("Which year?"),
            said("", tool_calls=CALL),
            {"role": "tool", "content": "1960", "tool_call_id": "c1"},
        ],
        "chosen": [said("1960.")],
        "rejected": [said("", tool_calls=[{**CALL[0], "function": {"name": "find", "arguments": {"n": [1]}}}])],
        "tools": TOOLS,
    }
]
EVERY = [*PLAIN, *TURNS, *WITH_SYSTEM, *REASONED, *CALLED]


def run_of(path: Path, rows: list[dict[str, Any]], kind: str = "pairs", **settings: Any) -> Run:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run = Run(path / "run")
    ingest(run, [str(file)], IngestSpec(kind=kind, test=0.0, **settings))
    return run


def prompts_of(run: Run) -> dict[str, str]:
    """Each prompt without call ids, which not every dialect has a place for."""
    rows = read_prompts(run, partial=True)
    return {row["prompt_id"]: plain(row["messages"]) for row in rows.select("prompt_id", "messages").to_dicts()}


def plain(messages: list[dict[str, Any]]) -> str:
    def shown(message: dict[str, Any]) -> list[Any]:
        calls = message.get("tool_calls")
        calls = json.loads(calls) if isinstance(calls, str) else calls
        called = [one["function"] for one in calls or []]
        return [message["role"], message["content"], called, message.get("reasoning_content")]

    return json.dumps([shown(message) for message in messages], sort_keys=True)


def answers_of(run: Run) -> dict[str, str]:
    rows = read_candidates(run, ["candidate_id", "text", "message"]).to_dicts()
    return {
        row["candidate_id"]: plain([json.loads(row["message"]) if row["message"] else said(row["text"])])
        for row in rows
    }


def pairs_of(run: Run) -> set[tuple[str, str, str]]:
    """The pairs by what is said, and not by id."""
    prompts, answers = prompts_of(run), answers_of(run)
    rows = run.only("pairs").read().to_pylist()
    return {(prompts[row["prompt_id"]], answers[row["chosen_id"]], answers[row["rejected_id"]]) for row in rows}


def back(folder: Path, to: Path, kind: str, **settings: Any) -> Run:
    run = Run(to)
    ingest(run, [str(folder)], IngestSpec(kind=kind, **settings))
    return run


def with_kind(kind: str) -> list[str]:
    return [name for name, one in dialects().items() if kind in one.layouts]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dialect", with_kind("pairs"))
def test_pairs_come_back(tmp_path: Path, dialect: str, strict: bool) -> None:
    run = run_of(tmp_path, PLAIN)
    report = export(run, ExportSpec(dialect=dialect, kind="pairs", strict_columns=strict), tmp_path / "out").report
    assert (report.rows_out, report.dropped) == (3, {})
    again = back(tmp_path / "out", tmp_path / "again", "pairs")
    assert pairs_of(again) == pairs_of(run)
    assert read_prompts(again)["split"].sort().to_list() == ["test", "train", "train"]


@pytest.mark.parametrize("dialect", with_kind("pairs"))
def test_what_a_dialect_cannot_say_is_left_out_and_counted_and_the_rest_comes_back(
    tmp_path: Path, dialect: str
) -> None:
    run = run_of(tmp_path, EVERY)
    report = export(run, ExportSpec(dialect=dialect, kind="pairs"), tmp_path / "out").report
    assert report.rows_in == len(EVERY)
    came = pairs_of(back(tmp_path / "out", tmp_path / "again", "pairs"))
    assert len(came) == report.rows_out
    lost = came - pairs_of(run)
    shown = {name: count for name, count in report.figures.items() if "reasoning" in name}
    assert len(lost) == sum(shown.values())  # reasoning that is left out, or stands in the text


def single(kind: str) -> list[dict[str, Any]]:
    """The same conversations with one response each."""
    label = {"label": [True, False, True]} if kind == "unpaired" else {}
    rows = [{**row, "completion": row["chosen"]} for row in EVERY]
    for row in rows:
        del row["chosen"], row["rejected"]
    return [{**row, **{name: values[n % 3] for name, values in label.items()}} for n, row in enumerate(rows)]


def content_of(run: Run, kind: str) -> set[tuple[Any, ...]]:
    """The rows of a kind by what is said: prompt, response, label."""
    prompts, answers = prompts_of(run), answers_of(run)
    rows = run.only(kind).read().to_pylist()
    return {(prompts[row["prompt_id"]], answers[row["candidate_id"]], row.get("good")) for row in rows}


@pytest.mark.parametrize(
    ("dialect", "kind"), [(name, kind) for kind in ("unpaired", "demonstrations") for name in with_kind(kind)]
)
def test_labels_and_demonstrations_come_back(tmp_path: Path, dialect: str, kind: str) -> None:
    """Those that the dialect has a place for; of reasoning that it has none for, the rest of the row."""
    run = run_of(tmp_path, single(kind), kind)
    report = export(run, ExportSpec(dialect=dialect, kind=kind), tmp_path / "out").report
    assert report.rows_in == len(EVERY)
    came = content_of(back(tmp_path / "out", tmp_path / "again", kind), kind)
    assert len(came) == report.rows_out > 0
    shown = sum(count for name, count in report.figures.items() if "reasoning" in name)
    assert len(came - content_of(run, kind)) == shown


@pytest.mark.parametrize("kind", ["pairs", "unpaired", "demonstrations", "prompts", "groups", "candidates"])
def test_rows_that_memory_does_not_hold_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Divided into many buckets by prompt, with prompts that two sources hold and responses of two samplers."""
    scored = [{"prompt": row["prompt"], "responses": ["The Robot.", "No."], "rewards": [2.0, 1.0]} for row in EVERY]
    rows = {"pairs": EVERY, "groups": scored, "candidates": scored}.get(kind) or single(kind)
    as_kind = "candidates" if kind == "groups" else kind
    run = run_of(tmp_path, rows, as_kind, **({"score": ("rewards",)} if rows is scored else {}))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "completion": [said("Other.")]}) + "\n" for row in single("unpaired")))
    ingest(run, [str(other)], IngestSpec(kind="unpaired", source="other"))
    if kind == "groups":
        pair(run, PairSpec(as_="groups", selector="all"))
    dialect = {"groups": "listwise", "candidates": "prefdata"}.get(kind, "trl")
    named = {"unpaired": {"input": "rows"}, "candidates": {"sampler": "rows-response"}}.get(kind, {})
    spec = ExportSpec(dialect=dialect, kind=kind, file_format="jsonl", **named)
    export(run, spec, tmp_path / "held")
    monkeypatch.setattr("prefdata.exports.rows.HELD_BYTES", 20)
    export(run, spec, tmp_path / "divided")
    held, divided = ((tmp_path / name / "data/train-00000-of-00001.jsonl") for name in ("held", "divided"))
    if kind in ("pairs", "prompts", "groups"):
        assert held.read_bytes() == divided.read_bytes()
    assert sorted(held.read_bytes().splitlines()) == sorted(divided.read_bytes().splitlines())
    assert len(held.read_bytes().splitlines()) > 4


@pytest.mark.parametrize("dialect", with_kind("prompts"))
def test_prompts_come_back_with_their_references(tmp_path: Path, dialect: str) -> None:
    rows = [{"prompt": row["prompt"], "answer": f"{n}."} for n, row in enumerate(PLAIN + TURNS + WITH_SYSTEM)]
    run = run_of(tmp_path, rows, "prompts")
    report = export(run, ExportSpec(dialect=dialect, kind="prompts"), tmp_path / "out").report
    again = back(tmp_path / "out", tmp_path / "again", "prompts")
    known, found = ({row["prompt_id"]: row["reference"] for row in read_prompts(r).to_dicts()} for r in (run, again))
    assert len(found) == report.rows_out > 0
    if dialect == "openrlhf":  # its `label` is the reference, which a reader cannot know
        found = {key: known[key] for key in found}
    assert found.items() <= known.items()


@pytest.mark.parametrize("dialect", with_kind("groups"))
def test_groups_come_back_as_responses_in_their_order(tmp_path: Path, dialect: str) -> None:
    responses = ["The Robot.", "No.", "Perhaps\n."]
    rows = [{"prompt": row["prompt"], "responses": responses, "rewards": [0.5, 2.0, -1.0]} for row in EVERY[:5]]
    run = run_of(tmp_path, rows, "candidates", score=("rewards",))
    pair(run, PairSpec(as_="groups", selector="all"))
    assert export(run, ExportSpec(dialect=dialect, kind="groups"), tmp_path / "out").report.rows_out == 5
    if dialect == "online-rlhf":  # it has rewards, which are no preferences until they are paired
        again = back(tmp_path / "out", tmp_path / "again", "candidates", score=("rewards",))
        pair(again, PairSpec(selector="all", strategy="all"))
    else:
        again = back(tmp_path / "out", tmp_path / "again", "pairs")
    better = {(first, second) for _, first, second in pairs_of(again)}
    ordered = [plain([said(text)]) for text in ("No.", "The Robot.", "Perhaps\n.")]
    assert better == {(a, b) for n, a in enumerate(ordered) for b in ordered[n + 1 :]}
    assert len(pairs_of(again)) == 15


@pytest.mark.parametrize("dialect", with_kind("pairs"))
def test_datasets_loads_what_was_written(tmp_path: Path, dialect: str) -> None:
    datasets = pytest.importorskip("datasets")
    export(run_of(tmp_path, EVERY), ExportSpec(dialect=dialect, kind="pairs"), tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    for split, rows in found.items():
        files = sorted((tmp_path / "out").rglob(f"{split}-*"))
        written = [row for file in files for row in rows_of(file)]
        assert [without_nulls(row) for row in rows] == [without_nulls(row) for row in written]


def rows_of(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def without_nulls(value: Any) -> Any:
    """Values as a reader takes them: JSON that is stored as text is a value, and padding is nothing."""
    if isinstance(value, dict):
        return {key: _value(key, item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _value(key: str, item: Any) -> Any:
    return json.loads(item) if key == "tool_calls" and isinstance(item, str) else without_nulls(item)
