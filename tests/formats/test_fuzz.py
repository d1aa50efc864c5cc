"""Damaged files: an error that says where, or what is left of them as it was; no traceback, and no row for another."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats.test_kinds import KINDS, shown

from prefdata.errors import PrefdataError
from prefdata.formats.reading import Reader, ReadOptions
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec
from prefdata.storage.run import Run

Rows = list[dict[str, Any]]
ROWS = 8
SEED = 20_240
BAD_VALUES: tuple[Any, ...] = (
    None, "", [], {}, [[]], [None], 1e308, -(10**30), float("nan"), True, "\x00", "\ud800", "[{'role':", "Human:",
    [{"role": "user"}], {"role": ["x"], "content": {}}, [["a", 1]], "9" * 5000, {"messages": [1]}, "<image>",
)  # fmt: skip


def rows_of(kind: str) -> Rows:
    """Rows of a kind that differ in their texts."""
    text = json.dumps(KINDS[kind][0])
    return [
        json.loads(text.replace("Q?", f"Q{n}?").replace("Aaa", f"A{n}").replace("Bbb", f"B{n}")) for n in range(ROWS)
    ]


# --- what is done to rows ---------------------------------------------------------------------------------------------


def value_replaced(rows: Rows, draw: random.Random) -> set[int]:
    n = draw.randrange(ROWS)
    place = draw.choice(list(rows[n]))
    if isinstance(rows[n][place], list) and rows[n][place] and draw.random() < 0.5:
        rows[n][place][draw.randrange(len(rows[n][place]))] = draw.choice(BAD_VALUES)
    else:
        rows[n][place] = draw.choice(BAD_VALUES)
    return {n + 1}


def key_renamed(rows: Rows, draw: random.Random) -> set[int]:
    n = draw.randrange(ROWS)
    rows[n] = {draw.choice((key, key.upper(), key[::-1], f"{key} 2")): value for key, value in rows[n].items()}
    return {n + 1}


def key_dropped(rows: Rows, draw: random.Random) -> set[int]:
    n = draw.randrange(ROWS)
    rows[n].pop(draw.choice(list(rows[n])))
    return {n + 1}


def nested_wrong(rows: Rows, draw: random.Random) -> set[int]:
    n = draw.randrange(ROWS)
    key = draw.choice(list(rows[n]))
    rows[n][key] = draw.choice(([rows[n][key]], {"x": rows[n][key]}, json.dumps(rows[n][key]), [[rows[n][key]]] * 2))
    return {n + 1}


def row_of_another_kind(rows: Rows, draw: random.Random) -> set[int]:
    n = draw.randrange(ROWS)
    rows[n] = dict(KINDS[draw.choice(list(KINDS))][0])
    return {n + 1}


# --- what is done to bytes --------------------------------------------------------------------------------------------


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 5))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def invalid_utf8(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xfe\xff")) + data[at:]


def with_bom(data: bytes, draw: random.Random) -> bytes:
    return b"\xef\xbb\xbf" + data


def mixed_newlines(data: bytes, draw: random.Random) -> bytes:
    return b"".join(line + draw.choice((b"\n", b"\r\n", b"\n\n")) for line in data.split(b"\n"))


ROW_MUTATORS: tuple[Callable[[Rows, random.Random], set[int]], ...] = (
    value_replaced, key_renamed, key_dropped, nested_wrong, row_of_another_kind
)  # fmt: skip
BYTE_MUTATORS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut,
    flipped,
    invalid_utf8,
    with_bom,
    mixed_newlines,
)


def encoded(rows: Rows, kind: str) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl.gz":
        return gzip.compress(encoded(rows, "jsonl"))
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([{key: json.dumps(value) for key, value in row.items()} for row in rows]), buffer
    )
    return buffer.getvalue()


def damaged(number: int, folder: Path) -> tuple[Path, Rows, set[int] | None]:
    """The `number`-th file, the rows that it was made of, and which rows were changed (None: it may be any)."""
    draw = random.Random(SEED + number)
    rows = rows_of(draw.choice(list(KINDS)))
    whole = json.loads(json.dumps(rows))
    kind = draw.choice(("jsonl", "jsonl", "json", "jsonl.gz", "parquet"))
    if draw.random() < 0.6:
        touched: set[int] | None = draw.choice(ROW_MUTATORS)(rows, draw)
        data = encoded(rows, kind)
    else:
        data = draw.choice(BYTE_MUTATORS)(encoded(rows, kind), draw)
        touched = None
    path = folder / f"{number}.{kind}"
    path.write_bytes(data)
    return path, whole, touched


def read(path: Path) -> dict[int, str] | None:
    """What each row is read as, by its number; None where the file is refused with a message."""
    options = ReadOptions(want="candidates", on_bad_rows="drop", one_means="first")
    reader, refusal = Reader([str(path)], options), ""
    try:
        return {row.row: shown(record) for row, record in reader.records()}
    except PrefdataError as error:
        refusal = str(error)
    assert str(path) in refusal
    return None


def check(numbers: range, folder: Path) -> None:
    for number in numbers:
        path, whole, touched = damaged(number, folder)
        found = read(path)
        intact = folder / f"intact-{number}.jsonl"
        intact.write_bytes(encoded(whole, "jsonl"))
        expected = read(intact)
        if found is not None and expected is not None and touched is not None and "parquet" not in path.name:
            others = {row: text for row, text in found.items() if row not in touched}
            assert others == {row: text for row, text in expected.items() if row not in touched}, path
        for kind in ("pairs", "unpaired", "comparisons")[number % 3 :][:1]:
            with suppress(PrefdataError):
                ingest(Run(folder / f"run-{number}"), [str(path)], IngestSpec(kind=kind, on_bad_rows="drop"))
        path.unlink()


@pytest.mark.parametrize("block", range(5))
def test_damaged_files(block: int, tmp_path: Path) -> None:
    check(range(block * 20, block * 20 + 20), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_many_damaged_files(block: int, tmp_path: Path) -> None:
    check(range(100 + block * 50, 150 + block * 50), tmp_path)
