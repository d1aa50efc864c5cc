"""Bad input: for each kind its message, exit code 2, one message, and nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prefdata.storage.atomic import checksum

GOOD = '{"prompt": "Say something."}\n'


@pytest.fixture
def refused(prefdata, tmp_path: Path):
    """Run a command that must be refused; returns its message after checking that nothing was written."""

    def check(*arguments: object, writes: Path | None = None) -> str:
        place = writes or tmp_path
        before = {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*")) if path.is_file()}
        code, out, err = prefdata(*arguments)
        assert code == 2, err
        assert out == ""
        assert err.startswith("prefdata: ")
        assert "Traceback" not in err
        assert {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*")) if path.is_file()} == before
        return err

    return check


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line if line.endswith("\n") else line + "\n" for line in lines))
    return path


def test_a_missing_file(refused, tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", GOOD)
    assert 'Did you mean "' in refused("ingest", tmp_path / "run", tmp_path / "promts.jsonl")


def test_jsonl_broken_at_line_731(refused, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"Say {i}."}) for i in range(1000)]
    lines[730] = '{"prompt": "Say'
    file = write(tmp_path / "p.jsonl", *lines)
    said = refused("ingest", tmp_path / "run", file)
    assert "1 bad row." in said
    assert f"{file}:731: " in said


def test_jsonl_broken_at_forty_more_lines(refused, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"Say {i}."}) for i in range(1000)]
    broken = [730, *range(3, 803, 20)]
    for number in broken:
        lines[number] = "{" if number % 2 else '{"prompt": 7}'
    file = write(tmp_path / "p.jsonl", *lines)
    said = refused("ingest", tmp_path / "run", file)
    assert "41 bad rows." in said
    assert f"{file}:4: " in said
    assert "(also in row 24, 44, 64, 84, … (40 rows))" in said
    assert f"{file}:731: " in said
    assert said.count("\n  ") == 2


def test_an_unknown_layout(refused, tmp_path: Path) -> None:
    said = refused("ingest", tmp_path / "run", write(tmp_path / "p.jsonl", '{"foo": 1, "bar": "x"}'))
    assert "foo" in said
    assert "messages" in said
    assert "--layout" in said


def test_an_empty_file(refused, tmp_path: Path) -> None:
    assert "empty" in refused("ingest", tmp_path / "run", write(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (["system"], "user"),
        (["assistant"], "user"),
        (["user", "user"], "user"),
        (["user", "system", "user"], "system"),
        (["assistant", "user"], "assistant"),
        (["user", "wizard"], "wizard"),
    ],
)
def test_roles_out_of_order(refused, tmp_path: Path, roles, said) -> None:
    row = {"messages": [{"role": role, "content": "x"} for role in roles]}
    file = write(tmp_path / "p.jsonl", GOOD.replace("prompt", "x"), json.dumps(row))
    file = write(tmp_path / "p.jsonl", json.dumps({"messages": [{"role": "user", "content": "fine"}]}), json.dumps(row))
    message = refused("ingest", tmp_path / "run", file)
    assert f"{file}:2: " in message
    assert said in message


def test_duplicates_are_merged_and_counted_or_refused(refused, prefdata, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", GOOD, GOOD, GOOD.replace("Say", "Tell"))
    said = refused("ingest", tmp_path / "run", file, "--on-duplicates", "error")
    assert f"{file}:2: " in said
    code, out, _ = prefdata("ingest", tmp_path / "run", file)
    assert code == 0
    assert "3 in, 2 out" in out
    assert "dropped: duplicate  1" in out


@pytest.fixture
def ready(prefdata, tmp_path: Path, tiny_policy: Path) -> Path:
    run = tmp_path / "run"
    prefdata("ingest", run, write(tmp_path / "p.jsonl", GOOD))
    prefdata("sample", run, "--model", tiny_policy, "-n", "2", "--max-tokens", "8", "--name", "s")
    return run


def test_model_folders(refused, ready: Path, tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path) -> None:
    def spoiled(source: Path, name: str, *gone: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(source, folder)
        for file in gone:
            for found in folder.glob(file):
                found.unlink()
        return folder

    empty = spoiled(tiny_policy, "no-weights", "*.safetensors")
    assert "holds no weights" in refused("sample", ready, "--model", empty)
    mute = spoiled(tiny_policy, "no-tokenizer", "tokenizer*")
    assert "holds no tokenizer" in refused("sample", ready, "--model", mute)
    assert "A reward model" in refused("rank", ready, "--reward-model", tiny_policy)
    assert "A causal language model" in refused("sample", ready, "--model", tiny_reward_model)
    assert "no folder" in refused("sample", ready, "--model", tmp_path / "nowhere" / "model")
    no_folder = refused("train", "dpo", ready, "--model", empty, "--out", tmp_path / "out")
    assert "prefdata pair" in no_folder or "holds no weights" in no_folder
    assert not (tmp_path / "out").exists()


def test_steps_before_their_input(refused, ready: Path) -> None:
    assert "run `prefdata rank" in refused("select", ready)
    assert "run `prefdata select" in refused("pair", ready)
    assert "run `prefdata pair" in refused("export", ready, "--to", ready / "exports/trl")


def test_a_table_of_another_version(refused, ready: Path, tiny_reward_model: Path) -> None:
    (part,) = ready.glob("candidates/sampler=s/part-*")
    table = pq.read_table(part, partitioning=None)
    part.unlink()
    part = part.with_name("part")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"version": b"9"}), part)
    part.rename(part.with_name(f"part-00000-{checksum(part)}.parquet"))
    (ready / "candidates/sampler=s/_SUCCESS").unlink()
    said = refused("rank", ready, "--reward-model", tiny_reward_model, "--partial")
    assert "has version 9 of the candidates contract, and this prefdata reads version 4" in said


def test_a_damaged_spec_file(prefdata, ready: Path, tiny_policy: Path) -> None:
    """Every part's footer says the same, so that nothing that was drawn is lost."""
    (ready / "candidates/sampler=s/_spec.json").write_text("{")
    again = ["sample", ready, "--model", tiny_policy, "--name", "s", "-n", "3", "--max-tokens", "8"]
    assert "_spec.json is damaged" in prefdata("check", "run", ready)[1]
    assert prefdata(*again)[0] == 0
    assert prefdata("check", "run", ready)[0] == 0


def test_a_full_disk(refused, prefdata, small_disk: Path, tmp_path: Path, tiny_policy: Path) -> None:
    """Sampling stops with a message, keeps what was written, and goes on when there is space."""
    run = small_disk / "run"
    prefdata("ingest", run, write(tmp_path / "p.jsonl", *[json.dumps({"prompt": f"Say {i}."}) for i in range(40)]))
    sample = ["sample", run, "--model", tiny_policy, "-n", "4", "--max-tokens", "30", "--name", "s"]
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(b"x" * (free - 12_000))
    code, _, err = prefdata(*sample)
    assert code == 2
    assert "disk is full" in err
    assert "run the same command again" in err
    assert not list(run.rglob("_tmp*"))
    ballast.unlink()
    assert prefdata(*sample)[0] == 0
    assert "160" in prefdata("sql", run, "select count(distinct candidate_id) from candidates")[1]


def test_a_read_only_directory(refused, small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    file = write(tmp_path / "p.jsonl", GOOD)
    assert "read-only" in refused("ingest", small_disk / "run", file, writes=small_disk)


def test_a_run_that_is_a_file(refused, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", GOOD)
    refused("ingest", file, file)
