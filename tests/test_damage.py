"""Damaged, lost and additional files: every reader of a table notices, and nothing becomes other rows in silence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefdata.cli.main import app
from prefdata.explore.check_run import check_run
from prefdata.storage import partition
from prefdata.storage.run import Run
from prefdata.storage.schemas import TABLES

Call = Callable[..., tuple[int, str, str]]

FLIPS = 6
"""Bits that are flipped in each kind of file; docs/reliability.md has the figures of many more."""

FUNCTION = "def f(messages, answer):\n    return float(len(answer))\n"


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(base: Path, policy: Path) -> Path:
    """A run with every table, in several parts where they are derived, an export and a model."""
    run, function = base / "run", base / "f.py"
    function.write_text(FUNCTION)
    asked = [
        {"prompt": f"Say {i}.", "responses": [f"{i} {'x' * k}" for k in range(3)], "split": ("train", "test")[i == 8]}
        for i in range(9)
    ]
    told = [
        {"prompt": f"Say {i}.", "answer_a": f"{i} x", "answer_b": f"{i} xx", "winner": "ab"[i % 2]} for i in range(9)
    ]
    pair = ["pair", run, "--selector", "top", "--name", "main"]
    for command in (
        ["ingest", run, lines(base / "asked.jsonl", asked), "--as", "candidates"],
        ["ingest", run, lines(base / "told.jsonl", told), "--as", "comparisons", "--source", "people"],
        ["rank", run, "--function", f"{function}:f"],
        ["rank", run, "--comparisons", "people", "--name", "bt"],
        ["select", run, "--scorer", "f", "--method", "top-k", "--k", "2", "--name", "top"],
        pair,
        *([*pair, "--as", kind] for kind in ("unpaired", "groups", "demonstrations")),
        ["export", run, "--to", run / "exports/trl"],
        ["train", "dpo", run, "--model", policy, "--out", run / "models/dpo", "--batch-size", "4"],
    ):
        app([*map(str, command)], standalone_mode=False)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(partition, "PART_ROWS", 4)
        yield build(base, tiny_policy)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def readers(run: Path, policy: Path) -> dict[str, list[list[object]]]:
    """Of each table the commands that read it; none of them has been run before."""
    function, out = run.parent / "f.py", run / "exports/new"
    function.write_text(FUNCTION + "\n")
    pairs, pair = [run, "--name", "new", "--selector"], ["pair", run, "--name", "new", "--selector"]
    export, train = ["export", run, "--to", out], ["--model", policy, "--out", run / "models/new"]
    count = {table: ["sql", run, f"select count(*) from {table}"] for table in TABLES}
    of_scores = ["--scorer", "f", "--baseline", "asked-response", "--policy", "top", "--split", "all"]
    every = {
        "prompts": [
            ["sample", run, "--model", policy, "--dry-run"],
            ["rank", run, "--function", f"{function}:f", "--name", "new"],
            [*pair, "top", "--where", "split = 'train'"],
            export,
            ["train", "dpo", run, *train],
            ["eval", "policies", run, *of_scores],
            ["sql", run, "select prompt from Preferences"],
        ],
        "candidates": [
            ["rank", run, "--function", f"{function}:f", "--name", "new"],
            ["select", *pairs[:3], "--scorer", "f", "--method", "best-of-n", "--refusals", "drop"],
            [*pair, "all", "--scorer", "f", "--where", "length(text) > 0"],
            export,
            ["curves", run, "--scorer", "f"],
            ["train", "dpo", run, *train],
            ["eval", "policies", run, *of_scores],
            ["sql", run, "select text from answers"],
        ],
        "comparisons": [
            ["rank", run, "--comparisons", "people", "--name", "new"],
            ["pair", run, "--strategy", "comparisons", "--judge", "people", "--name", "new"],
            ["eval", "judges", run],
        ],
        "scores": [
            ["rank", run, "--combine", "mean(f, bt)", "--name", "new"],
            ["select", *pairs[:3], "--scorer", "f", "--method", "best-of-n"],
            [*pair, "all", "--scorer", "f"],
            ["curves", run, "--scorer", "f"],
            ["eval", "policies", run, *of_scores],
        ],
        "selections": [
            [*pair, "top"],
            [*export, "--dialect", "sft", "--selector", "top"],
            ["train", "sft", run, "--selector", "top", *train],
            ["eval", "policies", run, *of_scores],
        ],
        "pairs": [export, ["explain", run, "0"], ["train", "dpo", run, *train], ["train", "rm", run, *train]],
        "unpaired": [[*export, "--dialect", "kto"]],
        "groups": [[*export, "--dialect", "listwise"]],
        "demonstrations": [
            [*export, "--dialect", "sft", "--input", "main"],
            ["train", "sft", run, "--input", "main", *train],
        ],
    }
    return {table: [*commands, count[table]] for table, commands in every.items()}


@pytest.mark.parametrize("fault", ["deleted", "flipped", "cut", "added"])
@pytest.mark.parametrize("table", list(TABLES))
def test_every_reader_notices(run: Path, prefdata: Call, tiny_policy: Path, table: str, fault: str) -> None:
    """A part that is gone, damaged or one too many: exit 2, one line that names it, and nothing is written."""
    part = max(run.glob(f"{table}/*/part-*"))
    if fault == "added":
        part = part.with_name(part.name.replace("part-0000", "part-0007"))
        shutil.copyfile(max(run.glob(f"{table}/*/part-*")), part)
    elif fault == "flipped":
        part.write_bytes(flipped(part.read_bytes(), random.Random(table)))
    elif fault == "cut":  # the first part: some of what a step knows of a table is read there
        part = min(part.parent.glob("part-*"))
        part.write_bytes(part.read_bytes()[:-20])
    else:
        part.unlink()
    before = sorted(run.rglob("*"))
    for command in readers(run, tiny_policy)[table]:
        code, _, err = prefdata(*command)
        assert (code, len(err.splitlines())) == (2, 1), (command, err)
        assert part.name in err, (command, err)
        assert {"deleted": "missing", "added": "added"}.get(fault, "damaged") in err
    code, said, _ = prefdata("check", "run", run)
    assert (code, len(said.splitlines())) == (1, 1), said
    assert part.name in said
    if fault in ("deleted", "added"):  # status reads no rows
        assert part.name in prefdata("status", run, "--format", "csv")[1]
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("table", ["candidates", "scores", "selections", "pairs"])
def test_the_same_command_makes_what_was_lost(run: Path, prefdata: Call, tiny_policy: Path, table: str) -> None:
    commands = {
        "scores": ["rank", run, "--function", f"{run.parent / 'f.py'}:f"],
        "selections": ["select", run, "--scorer", "f", "--method", "top-k", "--k", "2", "--name", "top"],
        "pairs": ["pair", run, "--selector", "top", "--name", "main"],
        "candidates": ["ingest", run, run.parent / "asked.jsonl", "--as", "candidates"],
    }
    (run.parent / "f.py").write_text(FUNCTION)
    shutil.copyfile(run.parent / "f.py", run.parent / "g.py")
    asked = [
        {"prompt": f"Say {i}.", "responses": [f"{i} {'x' * k}" for k in range(3)], "split": ("train", "test")[i == 8]}
        for i in range(9)
    ]
    lines(run.parent / "asked.jsonl", asked)
    name = {"candidates": "asked-response", "scores": "f", "selections": "top", "pairs": "main"}[table]
    before = Run(run).partition(table, name).read().sort_by(TABLES[table].key[0])
    max(Run(run).partition(table, name).parts()).unlink()
    assert prefdata(*commands[table])[0] == 0
    assert Run(run).partition(table, name).read().sort_by(TABLES[table].key[0]).equals(before)
    assert prefdata("check", "run", run)[0] == 0


def flipped(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(8 * len(data))
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


def kinds(run: Path) -> dict[str, Path]:
    """One file of every kind that a run holds, by kind."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        table = path.relative_to(run).parts[0]
        name = "part" if path.name.startswith("part-") else path.suffix or path.name
        found.setdefault(f"{table} {name}", path)
    return found


def test_a_flipped_bit_anywhere_is_found_or_harmless(whole: Path) -> None:
    """Harmless is what says the same: the white space of a JSON file."""
    dice, found = random.Random(0), kinds(whole)
    assert {f"{table} part" for table in TABLES} <= found.keys()
    assert {"models .safetensors", "models .json", "exports .parquet", "exports .md", "_reference .parquet"} <= {*found}
    assert not list(check_run(whole))
    for kind, path in found.items():
        good = path.read_bytes()
        try:
            for _ in range(FLIPS):
                bad = flipped(good, dice)
                path.write_bytes(bad)
                faults = list(check_run(whole))
                assert len(faults) == 1 or (not faults and same_json(good, bad)), (kind, faults)
                assert not faults or str(path) in faults[0]
        finally:
            path.write_bytes(good)
    assert not list(check_run(whole))


def same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def as_before(run: Path) -> None:
    """What is in a run as prefdata 0.1 wrote it: without checksums, in names and in files."""
    for part in run.glob("*/*/part-*"):
        part.rename(part.with_name(f"{part.name[:10]}.parquet"))
    for path in (*run.rglob("_SUCCESS"), *run.rglob("_spec.json")):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({name: values[name] for name in values if name not in ("files", "checksum")}))


def test_a_run_without_checksums_is_read_and_said_to_have_none(run: Path, prefdata: Call, tiny_policy: Path) -> None:
    as_before(run)
    for table, commands in readers(run, tiny_policy).items():
        for command in commands:
            for made in (*run.glob("*/new"), *run.glob("*/*=new")):
                shutil.rmtree(made)
            code, _, err = prefdata(*command)
            assert code == 0 or "explain" in command, (table, command, err)
    code, said, _ = prefdata("check", "run", run)
    assert (code, said.count("without checksums")) == (1, 12)


def test_a_table_that_no_step_has_finished_is_named(run: Path, prefdata: Call) -> None:
    """What is there is whole, and rows may be missing."""
    (run / "scores/scorer=f/_SUCCESS").unlink()
    code, said, err = prefdata("check", "run", run)
    assert (code, said) == (0, f"{run}: every file is unchanged.\n")
    assert f"{run}/scores/scorer=f is not finished: rows may be missing. Its command continues it." in err


def test_a_training_that_reads_a_damaged_export_stops(run: Path, prefdata: Call, tiny_policy: Path) -> None:
    shard = next((run / "exports/trl/data").glob("train-*"))
    shard.write_bytes(flipped(shard.read_bytes(), random.Random(1)))
    code, _, err = prefdata("train", "dpo", run / "exports/trl", "--model", tiny_policy, "--out", run / "models/new")
    assert (code, shard.name in err) == (2, True)
    (run / "exports/trl/_SUCCESS").unlink()
    shard.unlink()
    shutil.copyfile(next((run / "exports/trl/data").glob("test-*")), shard)  # changed on purpose
    assert prefdata("train", "dpo", run / "exports/trl", "--model", tiny_policy, "--out", run / "models/new")[0] == 0


def test_a_damaged_reference_is_computed_again(run: Path, prefdata: Call, tiny_policy: Path) -> None:
    train = ["train", "dpo", run, "--model", tiny_policy, "--batch-size", "4", "--out"]
    for cache in (run / "_reference").iterdir():
        cache.write_bytes(flipped(cache.read_bytes(), random.Random(1)))
    assert prefdata(*train, run / "models/again")[0] == 0
    one, two = (run / "models" / name / "model.safetensors" for name in ("dpo", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_a_damaged_checkpoint_is_not_continued(run: Path, tmp_path: Path) -> None:
    import torch
    from torch import nn

    from prefdata.errors import InputError
    from prefdata.train import checkpoint

    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    path = tmp_path / "_checkpoint"
    checkpoint.write(path, {"model": model}, optimizer, {"step": 1})
    good, dice = path.read_bytes(), random.Random(2)
    assert checkpoint.read(path, {"model": model}, optimizer) == {"step": 1}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = 0
    for _ in range(200):
        path.write_bytes(flipped(good, dice))
        try:
            assert checkpoint.read(path, {"model": model}, optimizer) == {"step": 1}
            assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        except InputError:
            found += 1
            path.write_bytes(good)
            checkpoint.read(path, {"model": model}, optimizer)
    assert found > 190
    path.write_bytes(good[:-9])
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.read(path, {"model": model}, optimizer)
