"""Containers: every row with its place, every broken one told, whatever the bytes."""

from __future__ import annotations

import gzip
import io
import json
import os
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
from prefdata.formats.readers import input_files, input_name, read, split_of


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
    for whole in ('{"p": 1}', '{"data": [], "rows": []}', '{"data": [{"p": 1}], "rows": [{"p": 1}, {"p": 2}]}'):
        with pytest.raises(
            InputError, match=r"d\.json: a JSON file should be a list of objects, or an object with one"
        ):
            values(put(tmp_path / "d.json", whole))
    with pytest.raises(InputError, match=r"f\.json:2: broken JSON at column 7: Expecting value"):
        values(put(tmp_path / "f.json", '[{"p": 1},\n{"p": }]'))


def test_rows_of_a_json_object(tmp_path: Path) -> None:
    """As pandas and others write them: one list beside settings, columns, rows by name, objects over several lines."""
    rows = [{"p": 1, "q": "a"}, {"p": 2, "q": "b"}]
    for whole in (
        {"version": 2, "data": rows},
        {"p": [1, 2], "q": ["a", "b"]},
        {"p": {"0": 1, "1": 2}, "q": {"0": "a", "1": "b"}},
        {"0": rows[0], "1": rows[1]},
        {"first": rows[0], "second": rows[1]},
    ):
        for text in (json.dumps(whole), json.dumps(whole, indent=2)):
            assert values(put(tmp_path / "a.json", text)) == rows
            assert len(values(put(tmp_path / "a.json", text + "\n"))) == 2
    assert values(put(tmp_path / "a.json", "\n".join(json.dumps(row, indent=1) for row in rows))) == rows


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
def test_lists_called_jsonl_and_lines_called_json(tmp_path: Path, name: str) -> None:
    rows = [{"p": ']\\" [', "n": number} for number in range(3)]
    lines = "\n".join(map(json.dumps, rows))
    for text in (json.dumps(rows), json.dumps(rows, indent=2), " \n" + json.dumps(rows), lines):
        assert values(put(tmp_path / name, text)) == rows
    broken = lines.replace('"n": 1}', '"n": 1')
    assert [isinstance(value, dict) for value in values(put(tmp_path / name, broken))] == [True, False, True]


def test_the_first_line_of_jsonl_may_be_the_broken_one(tmp_path: Path) -> None:
    assert values(put(tmp_path / "a.jsonl", '{"p": \n{"p": 1}\n')) == [
        "broken JSON at column 7: Expecting value",
        {"p": 1},
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1 << 20])
def test_a_list_is_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """However it is cut: inside numbers, escapes, words and texts."""
    monkeypatch.setattr("prefdata.formats.json_lists._PIECE", size)
    rows = [{"p": "a\\\n\U0001f600" * 9, "n": -12.5e10, "m": [True, None, {}]}, {}, {"long": "x" * 100}]
    text = json.dumps(rows, indent=1)
    assert values(put(tmp_path / "a.json", text)) == rows
    for broken, place in (
        (text[:-1], ":15: broken JSON at column 1"),
        (text + ",", ":15: there is more text after the list"),
    ):
        with pytest.raises(InputError, match=place):
            values(put(tmp_path / "a.json", broken))
    with pytest.raises(InputError, match=r":1: broken JSON at column 12: Expecting ',' delimiter"):
        values(put(tmp_path / "a.json", '[{"p": "x" "q": 1}, ' + text[1:]))


@pytest.mark.parametrize(
    "name", ["a.jsonl.zst", "a.json.zst", "a.csv.zst", "a.parquet.gz", "a.arrow.zst", "renamed.jsonl"]
)
def test_compressed_files(tmp_path: Path, name: str) -> None:
    """Also where the name hides it: the first bytes tell."""
    table, sink = pa.table({"p": ["x", "y"]}), pa.BufferOutputStream()
    if ".parquet" in name:
        pq.write_table(table, sink)
    elif ".arrow" in name:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        sink.write(b"p\nx\ny\n" if ".csv" in name else b'{"p": "x"}\n{"p": "y"}\n')
    content = sink.getvalue().to_pybytes()
    packed = gzip.compress(content) if name.endswith(".gz") else pa.compress(content, "zstd", asbytes=True)
    path = put(tmp_path / name, packed)
    assert values(path) == [{"p": "x"}, {"p": "y"}]
    with pytest.raises(InputError, match=r"broken gzip file|not readable|cannot be read"):
        values(put(Path(path), packed[:-6]))


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"p": [f"p{i}" for i in range(2500)]})
    for name, new in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
        assert values(str(tmp_path / name)) == table.to_pylist()


def test_padding_of_nested_columns_is_removed_and_a_null_in_jsonl_kept(tmp_path: Path) -> None:
    """Each struct of a Parquet column has the keys of all the others, as nulls; a JSON null was written by somebody."""
    tools = [{"name": "f", "arguments": {"title": "x"}}, {"name": "g", "arguments": {"currency": "y"}}]
    row = {"p": "x", "empty": None, "calls": tools}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert values(str(tmp_path / "a.parquet")) == [row]
    honest = {"p": "x", "calls": [{"name": "f", "arguments": {"title": None}}]}
    assert values(put(tmp_path / "a.jsonl", json.dumps(honest))) == [honest]


def test_csv_of_pandas_and_of_spreadsheets(tmp_path: Path) -> None:
    assert values(put(tmp_path / "a.csv", ",prompt\n0,x\n1,y\n")) == [
        {"": "0", "prompt": "x"},
        {"": "1", "prompt": "y"},
    ]
    assert values(put(tmp_path / "b.csv", 'prompt;score\n"a;b";1,5\n')) == [{"prompt": "a;b", "score": "1,5"}]


def test_globs_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/test.jsonl", "b/train.jsonl", "a.jsonl", "c.txt"):
        put(tmp_path / name, json.dumps({"p": name}))
    assert values(str(tmp_path / "*" / "*.jsonl")) == [
        {"p": "b/test.jsonl", "split": "test"},
        {"p": "b/train.jsonl", "split": "train"},
    ]
    assert values(str(tmp_path / "**" / "*.jsonl"))[0] == {"p": "a.jsonl"}
    with pytest.raises(InputError, match="no such file"):
        values(str(tmp_path / "*.nothing"))


@pytest.mark.parametrize("kind", ["lines", "list", "parquet", "gzip"])
def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    rows = [{"p": "x"}, {"p": "y"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    content = {
        "lines": lines,
        "list": json.dumps(rows).encode(),
        "parquet": sink.getvalue().to_pybytes(),
        "gzip": gzip.compress(lines),
    }
    monkeypatch.setattr("prefdata.formats.readers._SPOOLED", [])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content[kind])))
    assert [(row.file, row.row, row.values) for row in read("-")] == [("-", 1, rows[0]), ("-", 2, rows[1])]
    assert len(list(read("-"))) == 2  # it can be read again


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a/films.jsonl", "films"),
        ("films.json.gz", "films"),
        ("films.v2.parquet", "films.v2"),
        ("data", "data"),
        ("-", "stdin"),
    ],
)
def test_what_a_source_is_called(name: str, source: str) -> None:
    assert input_name(name) == source


def test_csv_cells_quotes_and_broken_records(tmp_path: Path) -> None:
    text = 'prompt,tags\n"a ""b"", \nc",x\n\none,two,three\n"ab"c,y\nlast,\n'
    assert values(put(tmp_path / "a.csv", text)) == [
        {"prompt": 'a "b", \nc', "tags": "x"},
        "3 cells, but the header has 2",
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
    with pytest.raises(InputError, match=f"{name}: it is empty: it has no rows"):
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
    with pytest.raises(
        InputError, match=r"the extension '\.xlsx' is not known\. Known, also with \.gz or \.zst: \.jsonl, "
    ):
        read(put(tmp_path / "a.xlsx", "x"))
    with pytest.raises(InputError, match=r"the extension '\.xz' is not known"):
        read(put(tmp_path / "a.jsonl.xz", "x"))


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
        ("valid1", "test"),
        ("test_prefs", "test"),
        ("train_prefs", "train"),
        ("sft_heldout", "test"),
        ("evaluation", "test"),
        ("train_test", None),
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

    def load(*name: Any, split: str | None, revision: str | None) -> Any:
        asked.append((*name, split, revision))
        rows = datasets.Dataset.from_list([{"question": "q"}])
        return rows if split else datasets.DatasetDict(train=rows, test=rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [(row.file, row.row, row.values) for row in read("org/name:main")] == [
        ("org/name:main/train", 1, {"question": "q", "split": "train"}),
        ("org/name:main/test", 1, {"question": "q", "split": "test"}),
    ]
    assert [(row.file, row.values) for row in read("org/name@v1.0::test_prefs")] == [
        ("org/name@v1.0::test_prefs", {"question": "q"})
    ]
    assert asked == [("org/name", "main", None, None), ("org/name", None, "test_prefs", "v1.0")]


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


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused(tmp_path: Path, kind: str) -> None:
    """A pipe can be read once, and its reader waits; zeros fill the memory."""
    path = tmp_path / "x.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for function in (read, input_files):
        with pytest.raises(InputError, match=r"x\.jsonl is a pipe or a device\. Give a file"):
            list(function(str(path)))
