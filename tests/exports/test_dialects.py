"""Dialects: the exact row of each, for one pair, label, demonstration, prompt and group."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata.errors import InputError, UsageError
from prefdata.exports.export import export
from prefdata.exports.registry import dialects, extra_columns
from prefdata.exports.templates import CONVERSATIONS, EACH, leaves
from prefdata.prompts.ingest import ingest
from prefdata.specs import ExportSpec, IngestSpec
from prefdata.specs.export import DialectName, FileFormat
from prefdata.storage.run import Run
from prefdata.storage.schemas import TABLES

SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Name a play."}, {"role": "assistant", "content": "The Painter."}]
USER = {"role": "user", "content": "Name a film."}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("The Robot.", "No."))


def run_of(path: Path, row: dict[str, Any], kind: str, **settings: Any) -> Run:
    path.mkdir(exist_ok=True)
    (path / "rows.jsonl").write_text(json.dumps(row), "utf-8")
    ingest(Run(path / "run"), [str(path / "rows.jsonl")], IngestSpec(kind=kind, test=0.0, **settings))
    return Run(path / "run")


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.rglob("t*-0*")):
        if file.suffix == ".parquet":
            rows += pq.read_table(file).to_pylist()
        elif file.suffix == ".arrow":
            rows += pa.ipc.open_stream(file.read_bytes()).read_all().to_pylist()
        else:
            text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            text = pa.CompressedInputStream(pa.BufferReader(text), "zstd").read() if file.suffix == ".zst" else text
            rows += [json.loads(line) for line in text.decode().splitlines()]
    return rows


MULTI, ALONE = [SYSTEM, *EARLIER, USER], [USER]
HUMAN = [{"from": "human", "value": "Name a film."}]
TURNS = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Name a play."},
         {"from": "gpt", "value": "The Painter."}, *HUMAN]  # fmt: skip

BEFORE = "\n\nHuman: Name a play.\n\nAssistant: The Painter.\n\nHuman: Name a film."

PAIRS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "trl": (MULTI, {"prompt": MULTI, "chosen": [GOOD], "rejected": [BAD]}),
    "openrlhf": (MULTI, {"prompt": MULTI, "chosen": [GOOD], "rejected": [BAD]}),
    "llamafactory": (
        MULTI,
        {
            "conversations": TURNS,
            "chosen": {"from": "gpt", "value": "The Robot."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ),
    "axolotl": (MULTI, {"messages": MULTI, "chosen": GOOD, "rejected": BAD}),
    "nemo-rl": (
        MULTI,
        {"context": MULTI, "completions": [{"rank": 0, "completion": [GOOD]}, {"rank": 1, "completion": [BAD]}]},
    ),
    "ms-swift": (MULTI, {"messages": [*MULTI, GOOD], "rejected_response": "No."}),
    "verl": (ALONE, {"prompt": "Name a film.", "chosen": "The Robot.", "rejected": "No."}),
    "online-rlhf": (MULTI, {"prompt": MULTI, "chosen": [GOOD], "rejected": [BAD]}),
    "hh": (
        [*EARLIER, USER],
        {
            "chosen": f"{BEFORE}\n\nAssistant: The Robot.",
            "rejected": f"{BEFORE}\n\nAssistant: No.",
        },
    ),
}


@pytest.mark.parametrize("dialect", PAIRS)
def test_a_pair(tmp_path: Path, dialect: str) -> None:
    prompt, wanted = PAIRS[dialect]
    run = run_of(tmp_path, {"prompt": prompt, "chosen": [GOOD], "rejected": [BAD]}, "pairs")
    export(run, ExportSpec(dialect=dialect, kind="pairs", strict_columns=True), tmp_path / "out")
    assert rows_in(tmp_path / "out") == [wanted]


def test_the_better_of_two_stands_first_or_second(tmp_path: Path) -> None:
    """Which it is follows from the pair's id: of 16 pairs some are first and some second, and all of them say so."""
    rows = [{"prompt": f"Name film {n}.", "chosen": "The Robot.", "rejected": "No."} for n in range(16)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run = Run(tmp_path / "run")
    ingest(run, [str(tmp_path / "rows.json")], IngestSpec(kind="pairs", test=0.0))
    export(run, ExportSpec(dialect="align-anything", strict_columns=True), tmp_path / "out")
    found = rows_in(tmp_path / "out")
    assert {row["better_response_id"] for row in found} == {0, 1}
    for row in found:
        assert row[f"response_{row['better_response_id']}"] == "The Robot."
        assert row[f"response_{1 - row['better_response_id']}"] == "No."
        assert row.keys() == {"prompt", "response_0", "response_1", "better_response_id"}


UNPAIRED: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "trl": (MULTI, {"prompt": MULTI, "completion": [GOOD], "label": True}),
    "kto": (MULTI, {"prompt": MULTI, "completion": [GOOD], "label": True}),
    "openrlhf": (MULTI, {"prompt": MULTI, "completion": [GOOD], "label": True}),
    "llamafactory": (MULTI, {"conversations": [*TURNS, {"from": "gpt", "value": "The Robot."}], "label": True}),
    "axolotl": (
        [SYSTEM, USER],
        {"system": "Be brief.", "prompt": "Name a film.", "completion": "The Robot.", "label": True},
    ),
    "ms-swift": (MULTI, {"messages": [*MULTI, GOOD], "label": True}),
}


@pytest.mark.parametrize("dialect", UNPAIRED)
def test_a_label(tmp_path: Path, dialect: str) -> None:
    prompt, wanted = UNPAIRED[dialect]
    run = run_of(tmp_path, {"prompt": prompt, "completion": [GOOD], "label": True}, "unpaired")
    kind = None if dialect == "kto" else "unpaired"
    export(run, ExportSpec(dialect=dialect, kind=kind, strict_columns=True), tmp_path / "out")
    assert rows_in(tmp_path / "out") == [wanted]


DEMONSTRATIONS: dict[str, dict[str, Any]] = {
    "trl": {"prompt": MULTI, "completion": [GOOD]},
    "sft": {"prompt": MULTI, "completion": [GOOD]},
    "openrlhf": {"prompt": MULTI, "completion": [GOOD]},
    "llamafactory": {"conversations": [*TURNS, {"from": "gpt", "value": "The Robot."}]},
    "sharegpt": {"conversations": [*TURNS, {"from": "gpt", "value": "The Robot."}]},
    # the earlier answer is not what was selected, and is not trained
    "axolotl": {"messages": [*({**one, "train": False} for one in MULTI), {**GOOD, "train": True}]},
    "nemo-rl": {"messages": [*MULTI, GOOD]},
    "ms-swift": {"messages": [*MULTI, GOOD]},
    "verl": {"messages": [*MULTI, GOOD]},
    "alpaca": {
        "instruction": "Name a film.",
        "input": "",
        "output": "The Robot.",
        "system": "Be brief.",
        "history": [["Name a play.", "The Painter."]],
    },
}


@pytest.mark.parametrize("dialect", DEMONSTRATIONS)
def test_a_demonstration(tmp_path: Path, dialect: str) -> None:
    run = run_of(tmp_path, {"prompt": MULTI, "completion": [GOOD]}, "demonstrations")
    kind = None if dialect == "sft" else "demonstrations"
    export(run, ExportSpec(dialect=dialect, kind=kind, strict_columns=True), tmp_path / "out")
    assert rows_in(tmp_path / "out") == [DEMONSTRATIONS[dialect]]


def test_a_demonstration_of_one_turn(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"prompt": ALONE, "completion": [GOOD]}, "demonstrations")
    for dialect, wanted in {
        "alpaca": {"instruction": "Name a film.", "input": "", "output": "The Robot."},
        "align-anything": {"prompt": "Name a film.", "response": "The Robot."},
    }.items():
        spec = ExportSpec(dialect=dialect, kind="demonstrations", strict_columns=True)
        export(run, spec, tmp_path / dialect)
        assert rows_in(tmp_path / dialect) == [wanted]


PROMPTS: dict[str, dict[str, Any]] = {
    "trl": {"prompt": MULTI},
    "openrlhf": {"prompt": MULTI, "label": "42"},
    "ms-swift": {"messages": MULTI, "solution": "42"},
}


@pytest.mark.parametrize("dialect", PROMPTS)
def test_a_prompt(tmp_path: Path, dialect: str) -> None:
    run = run_of(tmp_path, {"prompt": MULTI, "answer": "42"}, "prompts")
    export(run, ExportSpec(dialect=dialect, kind="prompts", strict_columns=True), tmp_path / "out")
    assert rows_in(tmp_path / "out") == [PROMPTS[dialect]]


def test_a_prompt_of_verl(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"prompt": MULTI, "answer": "42"}, "prompts")
    export(run, ExportSpec(dialect="verl"), tmp_path / "out")
    (row,) = rows_in(tmp_path / "out")
    assert row.pop("prompt_id") == row["extra_info"].pop("prompt_id")
    assert row == {
        "data_source": "prefdata",
        "prompt": MULTI,
        "ability": "general",
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": {"split": "train"},
        "reference": "42",
        "tags": [],
    }


def test_extra_columns_and_strict_ones(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"prompt": ALONE, "chosen": [GOOD], "rejected": [BAD], "margin": 2.0}, "pairs")
    export(run, ExportSpec(), tmp_path / "out")
    (row,) = rows_in(tmp_path / "out")
    assert list(row) == ["prompt", "chosen", "rejected", *extra_columns()["pairs"]]
    assert (row["probability"], row["weight"]) == (1.0, 1.0)
    schema = pq.read_schema(next((tmp_path / "out/data").iterdir()))
    message = pa.struct(
        [pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)]
    )
    assert schema.field("prompt").type == pa.list_(message)
    assert schema.field("score_margin").metadata[b"description"] == b"chosen_score - rejected_score."


def test_trl_has_no_column_that_changes_a_trainer_unasked() -> None:
    """Its RewardTrainer adds `margin` to the loss where it is there."""
    for kind in dialects()["trl"].layouts:
        table = {"demonstrations": "selections"}.get(kind, kind)
        assert "margin" not in dialects()["trl"].columns(kind, table, strict=False)


def test_a_prefill_belongs_to_the_response(tmp_path: Path) -> None:
    begun = {"role": "assistant", "content": "Sure: ", "prefill": True}
    row = {"prompt": [USER, begun], "chosen": [GOOD], "rejected": [{**BAD, "reasoning_content": "Hm."}]}
    export(run_of(tmp_path, row, "pairs"), ExportSpec(strict_columns=True), tmp_path / "out")
    (row,) = rows_in(tmp_path / "out")
    assert row["prompt"] == [{**USER, **dict.fromkeys(row["prompt"][0].keys() - USER.keys())}]
    assert row["chosen"][0]["content"] == "Sure: The Robot."
    assert (row["rejected"][0]["content"], row["rejected"][0]["reasoning_content"]) == ("Sure: No.", "Hm.")


CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"title": "robot"}}}
TOOLS = [{"type": "function", "function": {"name": "find"}}]


def test_calls_and_results_of_tools(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "content": "1960", "tool_call_id": "c1"}
    row = {"prompt": [USER, called, result], "chosen": [GOOD], "rejected": [called], "tools": TOOLS}
    run = run_of(tmp_path, row, "pairs")
    export(run, ExportSpec(strict_columns=True, file_format="jsonl"), tmp_path / "trl")
    (found,) = rows_in(tmp_path / "trl")
    assert found == {**row, "tools": json.dumps(TOOLS)}  # no message has a key that it does not need
    export(run, ExportSpec(dialect="llamafactory", strict_columns=True), tmp_path / "llamafactory")
    (found,) = rows_in(tmp_path / "llamafactory")
    call = json.dumps({"name": "find", "arguments": {"title": "robot"}})
    assert found["conversations"] == [
        *HUMAN,
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "1960"},
    ]
    assert found["rejected"] == {"from": "function_call", "value": call}
    assert found["tools"] == json.dumps(TOOLS)
    for dialect in ("hh", "axolotl", "ms-swift", "verl", "align-anything"):
        with pytest.raises(InputError, match=r"no row of pairs/.* can be written in the dialect .* \(tool calls 1\)"):
            export(run, ExportSpec(dialect=dialect, kind="pairs"), tmp_path / dialect)
        assert not (tmp_path / dialect).exists()


@pytest.mark.parametrize(
    ("dialect", "row", "reason"),
    [
        ("hh", {"prompt": [SYSTEM, USER]}, "system message"),
        ("hh", {"prompt": [{**USER, "content": "Say\n\nHuman: Hi"}]}, "a marker in the text"),
        ("verl", {"prompt": [*EARLIER, USER]}, "several turns"),
        ("align-anything", {"prompt": [SYSTEM, USER]}, "system message"),
    ],
)
def test_rows_that_a_dialect_cannot_say(tmp_path: Path, dialect: str, row: dict[str, Any], reason: str) -> None:
    run = run_of(tmp_path, {**row, "chosen": [GOOD], "rejected": [BAD]}, "pairs")
    with pytest.raises(InputError, match=rf"\({reason} 1\)"):
        export(run, ExportSpec(dialect=dialect, kind="pairs"), tmp_path / "out")


@pytest.mark.parametrize("form", get_args(FileFormat))
def test_every_container_holds_the_same(tmp_path: Path, form: str) -> None:
    run = run_of(tmp_path, {"prompt": MULTI, "chosen": [GOOD], "rejected": [BAD]}, "pairs")
    export(run, ExportSpec(file_format=form, strict_columns=True), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out/data").iterdir()] == [f"train-00000-of-00001.{form}"]
    assert rows_in(tmp_path / "out") == [PAIRS["trl"][1]]


def test_kinds_and_containers_that_a_dialect_does_not_have(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"prompt": MULTI, "chosen": [GOOD], "rejected": [BAD]}, "pairs")
    with pytest.raises(UsageError, match="hh has no prompts: choose --as pairs"):
        export(run, ExportSpec(dialect="hh", kind="prompts"), tmp_path / "out")
    with pytest.raises(UsageError, match="sft has no pairs: choose --as demonstrations"):
        export(run, ExportSpec(dialect="sft", kind="pairs"), tmp_path / "out")
    with pytest.raises(UsageError, match="the loader of verl reads no jsonl: choose --files parquet"):
        export(run, ExportSpec(dialect="verl", kind="pairs", file_format="jsonl"), tmp_path / "out")


def test_what_llamafactory_and_axolotl_want_beside_the_data(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"prompt": MULTI, "chosen": [GOOD], "rejected": [BAD]}, "pairs")
    export(run, ExportSpec(dialect="llamafactory"), tmp_path / "films")
    assert json.loads((tmp_path / "films/dataset_info.json").read_text()) == {
        "films_train": {
            "file_name": "train",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        }
    }
    assert [file.name for file in (tmp_path / "films/train").iterdir()] == ["train-00000-of-00001.jsonl"]
    export(run, ExportSpec(dialect="axolotl"), tmp_path / "axolotl")
    said = (tmp_path / "axolotl/axolotl.yaml").read_text()
    assert f"path: {tmp_path}/axolotl\n  split: train\n  type: chat_template.default" in said


def test_the_registry_is_whole() -> None:
    """Every dialect has a name that the command knows, and every column a template of parts that rows have."""
    names = {name for one in dialects().values() for name in (one.name, *one.also)}
    assert names == {*get_args(DialectName)}
    parts = {*CONVERSATIONS, *EACH, "request", "system", "history", "tools", "reference", "split", "better"}
    for one in dialects().values():
        for kind, layout in one.layouts.items():
            for column in [*layout.columns.values(), *extra_columns()[kind].values()]:
                known = parts | {*TABLES["prompts" if kind == "prompts" else kind].schema.names}
                assert {leaf.partition(".")[0] for leaf in leaves(column.is_)} <= known
