"""Containers: every row with its place, every broken one told, whatever the bytes."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.errors import InputError
from prefdata.formats.files import RawRow
from prefdata.formats.readers import read, split_of


def put(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def values(path: str) -> list[Any]:
    return [row.problem or dict(row.values) for row in read(path)]


def test_jsonl_counts_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"prompt":"one"}\n\n  \n{"prompt":"two"}')
    assert list(read(path)) == [RawRow(path, 1, {"prompt": "one"}), RawRow(path, 4, {"prompt": "two"})]


def test_every_broken_line_is_handed_on_with_its_place(tmp_path: Path) -> None:
    lines = [b'{"p":1}', b'{"p":', b"[1]", b'{"p":"\xff"}', b"null", b'{"p":' + b"9" * 5000 + b"}", b'{"p":2}']
    rows = list(read(put(tmp_path / "a.jsonl", b"\n".join(lines))))
    assert [(row.row, row.problem) for row in rows if row.problem and row.row < 6] == [
        (2, "broken JSON at column 6: Expecting value"),
        (3, "not an object but list"),
        (4, "not UTF-8 at byte 7"),
        (5, "not an object but NoneType"),
    ]
    assert rows[5].problem is not None
    assert rows[5].problem.startswith("unreadable JSON: Exceeds the limit")
    assert [row.row for row in rows if row.problem is None] == [1, 7]


def test_a_line_nested_too_deeply_is_one_bad_row(tmp_path: Path) -> None:
    deep = "[" * 200_000
    first, second = read(put(tmp_path / "a.jsonl", f'{{"p":{deep}\n{{"p":1}}\n'))
    assert (first.row, (first.problem or "")[:16]) == (1, "unreadable JSON:")
    assert second.values == {"p": 1}


ODD = [
    "\ufeff inside",
    "a\r\nb",
    "nul \x00 bell \x07 tab \t",
    "🙂 👨‍👩‍👧",
    "多言語 עברית",
    "line\u2028separator",
    "e\u0301 é",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_come_through_as_they_are(tmp_path: Path, text: str) -> None:
    line = json.dumps({"p": text}, ensure_ascii=False).replace("\\t", "\t").replace("\\u0000", "\x00")
    assert values(put(tmp_path / "a.jsonl", line)) == [{"p": text}]
    assert values(put(tmp_path / "a.json", f"[{line}]")) == [{"p": text}]
    assert values(put(tmp_path / "a.csv", f'p,q\r\n"{text}",1\r\n')) == [{"p": text, "q": "1"}]


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    assert values(put(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"p":"x"}\r\n{"p":"y"}\r\n')) == [{"p": "x"}, {"p": "y"}]
    assert values(put(tmp_path / "a.json", b'\xef\xbb\xbf[{"p":"x"}]')) == [{"p": "x"}]
    assert values(put(tmp_path / "a.csv", b"\xef\xbb\xbfp\r\nx\r\n")) == [{"p": "x"}]
    assert values(put(tmp_path / "a.txt", b"\xef\xbb\xbfx \r\n\r\ny\r\n")) == [{"text": "x "}, {"text": "y"}]
    with pytest.raises(InputError, match=r"a\.jsonl: the file is UTF-16\. Save it as UTF-8"):
        values(put(tmp_path / "a.jsonl", '{"p":"x"}'.encode("utf-16")))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.ndjson.gz"])
def test_gzip(tmp_path: Path, name: str, bom: bytes) -> None:
    line = b'[{"p":"x"}]' if name.startswith("a.json.") else b'{"p":"x"}\n'
    path = put(tmp_path / name, gzip.compress(bom + line))
    assert values(path) == [{"p": "x"}]
    whole = Path(path).read_bytes()
    with pytest.raises(InputError, match="broken gzip file"):
        values(put(Path(path), whole[:-6]))
    with pytest.raises(InputError, match="broken gzip file"):
        values(put(Path(path), b"plain text"))


def test_json_list_object_and_lines(tmp_path: Path) -> None:
    assert values(put(tmp_path / "a.json", '[{"p": 1},\n {"p": 2}, 3]')) == [
        {"p": 1},
        {"p": 2},
        "not an object but int",
    ]
    assert values(put(tmp_path / "b.json", '{"version": 2, "data": [{"p": 1}]}')) == [{"p": 1}]
    assert values(put(tmp_path / "c.json", '{"p": 1}\n{"p": 2}\n')) == [{"p": 1}, {"p": 2}]
    with pytest.raises(InputError, match="one list of them under one of the keys data, rows"):
        values(put(tmp_path / "d.json", '{"p": 1}'))
    with pytest.raises(InputError, match="one list of them under one of the keys"):
        values(put(tmp_path / "e.json", '{"data": [], "rows": []}'))
    with pytest.raises(InputError, match=r"f\.json:2: broken JSON at column 7: Expecting value"):
        values(put(tmp_path / "f.json", '[{"p": 1},\n{"p": }]'))


def test_csv_cells_quotes_and_broken_records(tmp_path: Path) -> None:
    text = 'prompt,tags\n"a ""b"", \nc",x\n\none,two,three\n"ab"c,y\nlast,\n'
    assert values(put(tmp_path / "a.csv", text)) == [
        {"prompt": 'a "b", \nc', "tags": "x"},
        "3 cells, and the header has 2",
        "broken CSV at line 6: ',' expected after '\"'",
        {"prompt": "last", "tags": None},
    ]
    assert values(put(tmp_path / "a.tsv", "a\tb\n1,5\t2\n")) == [{"a": "1,5", "b": "2"}]
    assert values(put(tmp_path / "b.csv", b"p\n\xff\nfine\n")) == ["not UTF-8", {"p": "fine"}]
    for header in ("a,a", "a,", '"a'):
        with pytest.raises(InputError, match="the first line should name the columns"):
            values(put(tmp_path / "c.csv", header + "\n1,2\n"))


def test_csv_cell_longer_than_the_library_allows_by_default(tmp_path: Path) -> None:
    text = "x" * 300_000
    assert values(put(tmp_path / "a.csv", f"p\n{text}\n")) == [{"p": text}]


def test_parquet_and_what_only_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "tags": ["a"]} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read_back = list(read(str(tmp_path / "a.parquet")))
    assert [row.values for row in read_back] == rows
    assert [row.row for row in read_back] == list(range(1, 2501))
    with pytest.raises(InputError, match="not readable as Parquet"):
        values(put(tmp_path / "b.parquet", "no such thing"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.tsv"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    if name.endswith("sv") and content:
        content = "p,q\n"
    with pytest.raises(InputError, match=f"{name}: it is empty, there is no row in it"):
        values(put(tmp_path / name, content))


def test_an_empty_parquet_file_or_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is empty"):
        values(str(tmp_path))
    pq.write_table(pa.table({"p": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="it is empty"):
        values(str(tmp_path / "a.parquet"))


def test_missing_files_and_unknown_extensions(tmp_path: Path) -> None:
    put(tmp_path / "prompts.jsonl", "{}")
    with pytest.raises(InputError, match=r'promts\.jsonl: no such file\. Did you mean ".*/prompts\.jsonl"\?'):
        read(str(tmp_path / "promts.jsonl"))
    with pytest.raises(InputError, match=r"x\.jsonl: no such file, and no folder .*/nowhere"):
        read(str(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(InputError, match=r"data/x\.jsonl: no such file, and no folder data\.$"):
        read("data/x.jsonl")
    with pytest.raises(InputError, match=r"the extension '\.xlsx' is not known\. Known, also with \.gz: \.jsonl, "):
        read(put(tmp_path / "a.xlsx", "x"))
    with pytest.raises(InputError, match=r"the extension '\.zst' is not known"):
        read(put(tmp_path / "a.jsonl.zst", "x"))


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    put(tmp_path / "b.jsonl", '{"p":2}\n')
    put(tmp_path / "a" / "z.csv", "p\n1\n")
    for passed_over in ("README.md", "LICENSE", ".hidden/x.jsonl", "_SUCCESS", "_spec.json", "dataset_info.json"):
        put(tmp_path / passed_over, "not data")
    assert [(Path(row.file).name, row.row, row.values) for row in read(str(tmp_path))] == [
        ("z.csv", 1, {"p": "1"}),
        ("b.jsonl", 1, {"p": 2}),
    ]
    put(tmp_path / "model.bin", "x")
    with pytest.raises(InputError, match=r"model\.bin: the extension '\.bin' is not known"):
        read(str(tmp_path))


def test_splits_come_from_the_names_of_files_where_there_are_several(tmp_path: Path) -> None:
    put(tmp_path / "data" / "train-00000-of-00001.jsonl", '{"p":1}\n{"p":2,"split":"test"}\nbroken\n')
    assert values(str(tmp_path))[:2] == [{"p": 1}, {"p": 2, "split": "test"}]
    put(tmp_path / "data" / "validation-00000-of-00001.jsonl", '{"p":3}\n')
    put(tmp_path / "data" / "more.jsonl", '{"p":4}\n')
    assert values(str(tmp_path)) == [
        {"p": 4},
        {"p": 1, "split": "train"},
        {"p": 2, "split": "test"},
        "broken JSON at column 1: Expecting value",
        {"p": 3, "split": "test"},
    ]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("train_sft", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("Test.jsonl", "test"),
        ("validation", "test"),
        ("dev", "test"),
        ("trains", None),
        ("testset", None),
        ("all", None),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_datasets_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list([{"prompt": f"p{i}"} for i in range(3000)])
    train.save_to_disk(tmp_path / "one", num_shards=2)
    assert values(str(tmp_path / "one")) == [{"prompt": f"p{i}"} for i in range(3000)]
    datasets.DatasetDict(train=train.select([0]), test=train.select([1])).save_to_disk(tmp_path / "two")
    assert values(str(tmp_path / "two")) == [{"prompt": "p0", "split": "train"}, {"prompt": "p1", "split": "test"}]


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*name: Any) -> Any:
        asked.append(name)
        rows = datasets.Dataset.from_list([{"question": "q"}])
        return datasets.DatasetDict(train=rows, test=rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [(row.file, row.row, row.values) for row in read("org/name:main")] == [
        ("org/name:main/train", 1, {"question": "q", "split": "train"}),
        ("org/name:main/test", 1, {"question": "q", "split": "test"}),
    ]
    assert asked == [("org/name", "main")]


def test_a_hub_that_cannot_be_reached_and_datasets_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file, and the hub has no such dataset or cannot be reached"):
        read("no-such-org/no-such-dataset")  # the tests run offline
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'prefdata\[datasets\]'"):
        read("no-such-org/no-such-dataset")


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(), min_size=1, max_size=3), min_size=1, max_size=5))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    put(path, "\n".join(json.dumps(row) for row in rows))
    assert values(str(path)) == rows
