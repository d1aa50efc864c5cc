"""Rows that train, and rows that do not: each with its place and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata.errors import BadRows, InputError
from prefdata.train.data import open_source
from prefdata.train.parsing import Item, parse


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(path: Path | str, kind: Any, **options: Any) -> list[Item]:
    source = open_source(path, kind)
    return parse(source.read(), kind, source.name, **options)


CHAT = ([user("q")], ([assistant("a")], [assistant("b")]))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, CHAT),
        ({"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]}, CHAT),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, CHAT),
        ({"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, CHAT),
        ({"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [assistant("b")]}, CHAT),
        ({"prompt": "q ", "chosen": "a", "rejected": "b"}, ("q ", ("a", "b"))),
        (
            {"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"},
            ("Human: q Assistant: ", ("a", "b")),
        ),
        (
            {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b"), user("r"), assistant("c")]},
            ([user("q")], ([assistant("a")], [assistant("b"), user("r"), assistant("c")])),
        ),
    ],
)
def test_preference_layouts(tmp_path: Path, write_jsonl: Any, row: Any, expected: Any) -> None:
    (item,) = read(write_jsonl(tmp_path / "x.jsonl", [row]), "preferences")
    assert (item.prompt, item.answers) == expected
    assert (item.weight, item.margin) == (1.0, None)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [user("q"), assistant("a")]}, ([user("q")], ([assistant("a")],))),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, ([user("q")], ([assistant("a")],))),
        ({"prompt": "q", "completion": "a"}, ("q", ("a",))),
        (
            {"messages": [user("q"), assistant("a"), user("r"), assistant("b")]},
            ([user("q"), assistant("a"), user("r")], ([assistant("b")],)),
        ),
    ],
)
def test_demonstration_layouts(tmp_path: Path, write_jsonl: Any, row: Any, expected: Any) -> None:
    (item,) = read(write_jsonl(tmp_path / "x.jsonl", [row]), "demonstrations")
    assert (item.prompt, item.answers) == expected


GOOD = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rejected": None}, "rejected is missing, or null"),
        ({"prompt": None}, "there is no prompt"),
        ({"chosen": []}, "chosen is missing, or null"),
        ({"chosen": [user("a")]}, "chosen and rejected do not begin with the prompt"),
        ({"chosen": [{"role": "assistant"}]}, "the content of message 1 is null"),
        ({"chosen": [{"role": "wizard", "content": "a"}]}, "message 1 has the role 'wizard'"),
        ({"chosen": 3}, "chosen should be a text, a message or a conversation, not 3"),
        ({"prompt": [user("q"), {"role": "system", "content": "s"}, user("r")]}, "message 2 is system, after user"),
        ({"weight": -1.0}, "weight is -1.0"),
        ({"weight": float("nan")}, "weight should be a number, not nan"),
        ({"margin": "big"}, "margin should be a number, not 'big'"),
        ({"tools": "{"}, "tools should be a list"),
    ],
)
def test_bad_preferences(tmp_path: Path, write_jsonl: Any, change: Any, problem: str) -> None:
    good = {**GOOD, "weight": 1, "margin": 1}
    path = write_jsonl(tmp_path / "x.jsonl", [good, {**good, **change}, good])
    with pytest.raises(BadRows) as caught:
        read(path, "preferences")
    (bad,) = caught.value.rows
    assert (bad.file, bad.row) == (str(path), 2)
    assert bad.problem.startswith(problem)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": "a"}, CHAT),
        ({"chosen": [{"role": "bot", "content": "a"}]}, CHAT),
        ({"weight": None}, CHAT),
        (
            {"prompt": [user("q"), assistant("x")]},
            ([user("q")], ([assistant("xa")], [assistant("xb")])),  # what the assistant has begun
        ),
    ],
)
def test_rows_that_were_refused_before(tmp_path: Path, write_jsonl: Any, change: Any, expected: Any) -> None:
    (item,) = read(write_jsonl(tmp_path / "x.jsonl", [{**GOOD, **change}]), "preferences")
    assert (item.prompt, item.answers) == expected


def test_pairs_that_teach_nothing_are_left_out_and_counted(tmp_path: Path, write_jsonl: Any) -> None:
    same, empty = {**GOOD, "chosen": [assistant("b")]}, {**GOOD, "chosen": [assistant("  ")]}
    skipped: Counter[str] = Counter()
    path = write_jsonl(tmp_path / "x.jsonl", [GOOD, same, empty])
    assert len(read(path, "preferences", skipped=skipped)) == 1
    assert skipped == {"same_text": 1, "empty": 1}


def test_bad_lines_and_bad_rows_are_reported_together(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [GOOD, {**GOOD, "chosen": None}, [1], {"prompt": "q", "chosen": "a"}])
    path.write_text(path.read_text() + '{"prompt": \n')
    with pytest.raises(BadRows) as caught:
        read(path, "preferences")
    assert [(bad.row, bad.problem.split(":")[0]) for bad in caught.value.rows] == [
        (2, "chosen is missing, or null"),
        (3, "not an object but list"),
        (4, "rejected is missing, or null"),
        (5, "broken JSON at column 12"),
    ]


def test_margin_is_asked_for_only_by_those_who_use_it(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{**GOOD, "margin": None}])
    assert len(read(path, "preferences")) == 1
    with pytest.raises(BadRows, match="margin is missing"):
        read(path, "preferences", need_margin=True)


def test_probability_is_read_only_where_it_is_asked_for(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{**GOOD, "probability": 0.75}, {**GOOD, "probability": 0.5}, {**GOOD, "probability": "high"}]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    assert [item.probability for item in read(path, "preferences")] == [1.0, 1.0, 1.0]
    with pytest.raises(BadRows, match=r"x\.jsonl:3: probability is missing or not a number"):
        read(path, "preferences", need_probability=True)
    (item,) = read(
        write_jsonl(tmp_path / "y.jsonl", [{**GOOD, "probability": 0.75}]), "preferences", need_probability=True
    )
    assert item.probability == 0.75
    for value, problem in ((None, "probability is missing"), (1.5, "probability is 1.5, but should be from 0 to 1")):
        with pytest.raises(BadRows, match=problem):
            read(
                write_jsonl(tmp_path / "z.jsonl", [{**GOOD, "probability": value}]),
                "preferences",
                need_probability=True,
            )


def test_ties_are_left_out_and_counted(tmp_path: Path, write_jsonl: Any) -> None:
    tie = {**GOOD, "rejected": [assistant("a")], "verdict": "tie"}  # equal texts may well tie
    skipped: Counter[str] = Counter()
    path = write_jsonl(tmp_path / "x.jsonl", [tie, {**GOOD, "verdict": "chosen"}, tie])
    assert len(read(path, "preferences", skipped=skipped)) == 1
    assert +skipped == {"tie": 2}
    with pytest.raises(InputError, match=r"all rows are left out \(tie 2\)"):
        read(write_jsonl(tmp_path / "y.jsonl", [tie, tie]), "preferences")


def test_unknown_layout_lists_the_known_ones(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"question": "q", "good": "a"}])
    with pytest.raises(
        InputError, match=r"no row says which of two responses is better \(layout question, responses in good\)"
    ):
        read(path, "preferences")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.jsonl", "", "it is empty"),
        ("x.json", "{}", "a JSON file should be a list of objects"),
        ("x.json", "[", "broken JSON at column 2"),
        ("x.parquet", "no", "not readable as Parquet"),
        ("x.csv", "a,b", "it is empty"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read(tmp_path / name, "preferences")


def test_missing_file_and_strange_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such file"):
        open_source(tmp_path / "none", "preferences")
    with pytest.raises(InputError, match=r"nothing\.jsonl: no such file"):
        open_source("nothing.jsonl", "preferences")
    with pytest.raises(InputError, match=r"neither a run directory .* nor an export"):
        open_source(tmp_path, "preferences")


def test_a_hub_name_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*names: str, **options: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"cannot be reached \(no network\)"):
        open_source("nobody/nothing", "preferences")


def test_a_dataset_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list([GOOD]), "test": datasets.Dataset.from_list([GOOD])}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: made)
    items = read("some/data", "preferences")
    assert [(item.row.split, item.prompt, item.answers) for item in items] == [("train", *CHAT), ("test", *CHAT)]


def test_an_export_folder_has_both_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(pa.Table.from_pylist([GOOD, GOOD]), tmp_path / "data" / f"{name}.parquet")
    items = read(tmp_path, "preferences")
    assert sorted(item.row.split for item in items) == ["test"] * 2 + ["train"] * 4
    assert {(str(item.prompt), str(item.answers)) for item in items} == {(str(CHAT[0]), str(CHAT[1]))}
    before = open_source(tmp_path, "preferences").parents
    pq.write_table(pa.Table.from_pylist([GOOD]), tmp_path / "data" / "test-00000-of-00001.parquet")
    assert open_source(tmp_path, "preferences").parents != before
