"""Every layout that trains, and every row that does not, with its place and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata.errors import BadRows, InputError
from prefdata.train.data import find
from prefdata.train.layouts import Item, parse


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(path: Path | str, kind: Any, **options: Any) -> list[Item]:
    source = find(path, kind)
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
        ({"rejected": None}, "rejected is null"),
        ({"prompt": None}, "prompt is null"),
        ({"chosen": []}, "chosen is empty"),
        ({"chosen": [assistant("  ")]}, "chosen is empty"),
        ({"chosen": [assistant("b")]}, "chosen and rejected are identical"),
        ({"chosen": [user("a")]}, "chosen should begin and end with a message of the assistant, not of the user"),
        ({"chosen": [{"role": "assistant"}]}, "message 1 of chosen should have the texts role and content"),
        ({"chosen": [{"role": "bot", "content": "a"}]}, 'message 1 of chosen has the role "bot"'),
        ({"chosen": "a"}, "one of chosen and rejected is a text and the other a conversation"),
        ({"chosen": 3}, "chosen is a int, and should be a text or a list"),
        ({"prompt": [user("q"), assistant("x")]}, "the prompt ends with a message of the assistant, not the user"),
        ({"prompt": [user("q"), {"role": "system", "content": "s"}, user("r")]}, "a system message stands after"),
        ({"weight": -1.0}, "weight is -1.0"),
        ({"weight": None}, "weight is None"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"margin": "big"}, "margin is 'big'"),
        ({"tools": "{"}, "tools is not JSON"),
    ],
)
def test_bad_preferences(tmp_path: Path, write_jsonl: Any, change: Any, problem: str) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [GOOD, {**GOOD, **change}, GOOD])
    with pytest.raises(BadRows) as caught:
        read(path, "preferences")
    (bad,) = caught.value.rows
    assert (bad.file, bad.row) == ("x.jsonl", 2)
    assert bad.problem.startswith(problem)


def test_bad_lines_and_bad_rows_are_told_together(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [GOOD, {**GOOD, "chosen": None}, [1], {"prompt": "q", "chosen": "a"}])
    path.write_text(path.read_text() + '{"prompt": \n')
    with pytest.raises(BadRows) as caught:
        read(path, "preferences")
    assert [(bad.row, bad.problem.split(":")[0]) for bad in caught.value.rows] == [
        (2, "chosen is null"),
        (3, "not a JSON object"),
        (4, "rejected is missing"),
        (5, "not JSON"),
    ]


def test_margin_is_asked_for_only_by_those_who_use_it(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{**GOOD, "margin": None}])
    assert len(read(path, "preferences")) == 1
    with pytest.raises(BadRows, match="margin is missing"):
        read(path, "preferences", need_margin=True)


def test_probability_is_read_only_where_it_is_asked_for(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{**GOOD, "probability": 0.75}, {**GOOD, "probability": "high"}])
    assert [item.probability for item in read(path, "preferences")] == [1.0, 1.0]
    with pytest.raises(BadRows, match="probability is 'high'"):
        read(path, "preferences", need_probability=True)
    (item,) = read(
        write_jsonl(tmp_path / "y.jsonl", [{**GOOD, "probability": 0.75}]), "preferences", need_probability=True
    )
    assert item.probability == 0.75
    for value, problem in ((None, "probability is missing"), (1.5, "probability is 1.5, and should be from 0 to 1")):
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
    with pytest.raises(InputError, match="all 2 rows are ties"):
        read(write_jsonl(tmp_path / "y.jsonl", [tie, tie]), "preferences")


def test_unknown_layout_lists_the_known_ones(tmp_path: Path, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"question": "q", "good": "a"}])
    with pytest.raises(
        InputError, match="the columns question, good, and preferences come as prompt, chosen, rejected"
    ):
        read(path, "preferences")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.jsonl", "", "it is empty"),
        ("x.json", "{}", "should hold a list"),
        ("x.json", "[", "is not JSON"),
        ("x.parquet", "no", "is not a Parquet file"),
        ("x.csv", "a,b", "training data is read from .parquet, .jsonl, .json"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read(tmp_path / name, "preferences")


def test_missing_file_and_strange_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        find(tmp_path / "none", "preferences")
    with pytest.raises(InputError, match=r"there is no file or folder nothing\.jsonl"):
        find("nothing.jsonl", "preferences")
    with pytest.raises(InputError, match=r"neither a run directory .* nor an export"):
        find(tmp_path, "preferences")


def test_a_hub_name_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"datasets cannot load it \(no network\)"):
        find("nobody/nothing", "preferences")


def test_a_dataset_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list([GOOD]), "test": datasets.Dataset.from_list([GOOD])}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: made)
    items = read("some/data", "preferences")
    assert [(item.row.split, item.prompt, item.answers) for item in items] == [("train", *CHAT), ("test", *CHAT)]


def test_an_export_folder_has_both_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(pa.Table.from_pylist([GOOD, GOOD]), tmp_path / "data" / f"{name}.parquet")
    items = read(tmp_path, "preferences")
    assert [item.row.split for item in items] == ["train"] * 4 + ["test"] * 2
    assert {(str(item.prompt), str(item.answers)) for item in items} == {(str(CHAT[0]), str(CHAT[1]))}
    before = find(tmp_path, "preferences").parents
    pq.write_table(pa.Table.from_pylist([GOOD]), tmp_path / "data" / "test-00000-of-00001.parquet")
    assert find(tmp_path, "preferences").parents != before
