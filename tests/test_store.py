"""The run directory: atomic parts, lineage, conflicts, what a reader may see."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdata.errors import InputError, NotReady, SpecConflict, StorageError, UsageError
from prefdata.specs import SampleSpec, Spec, identity_field, runtime_field
from prefdata.storage.atomic import checksum, this_process
from prefdata.storage.compaction import compact
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run, name_of
from prefdata.storage.schemas import SCORES, rebatch


class ToySpec(Spec):
    step = "toy"
    beta: float = identity_field(0.5, "x")
    batch: int = runtime_field(1, "y")


def scores(*ids: str, score: float = 1.0) -> pa.Table:
    return SCORES.from_rows([row(i, score=score) for i in ids])


def row(candidate_id: str, prompt_id: str = "p", score: float = 1.0) -> dict[str, Any]:
    copied = {"sampler": "s", "sample_index": 0, "round": 0, "text_key": 1, "chars": 1}
    return {"candidate_id": candidate_id, "prompt_id": prompt_id, **copied, "score": score, "text_hash": "h"}


def report(rows: int) -> Report:
    return Report(step="toy", unit="rows", rows_in=rows, rows_out=rows)


def test_life_of_a_partition(tmp_path: Path) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    lineage = Lineage.of(ToySpec())
    assert part.state == "absent"
    assert part.begin(lineage) == "absent"
    assert part.state == "unfinished"
    part.append(scores("a", "b"))
    part.append(scores("c"))
    assert [p.name[:11] for p in part.parts()] == ["part-00000-", "part-00001-"]
    assert part.begin(lineage) == "unfinished"
    part.finish(report(3))
    assert part.begin(lineage) == "finished"
    assert part.read(["candidate_id"])["candidate_id"].to_pylist() == ["a", "b", "c"]
    footer = json.loads(pq.read_schema(part.parts()[0]).metadata[b"prefdata"])
    assert footer["spec"] == {"beta": 0.5}
    assert footer["fingerprint"] == ToySpec().fingerprint()
    success = part.success()
    assert success is not None
    assert success.content == lineage.content


def test_only_what_comes_again_has_a_dictionary(tmp_path: Path) -> None:
    rows = [{**row(f"c{i}", f"p{i // 8}", i / 7), "text_hash": f"h{i}", "text_key": i} for i in range(2000)]
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    group = pq.ParquetFile(part.append(SCORES.from_rows(rows))).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    said = {one.path_in_schema for one in columns if one.has_dictionary_page}
    assert said == {field.name for field in SCORES.schema} - {"candidate_id", "score", "text_key", "text_hash"}
    assert part.read().to_pylist() == SCORES.from_rows(rows).to_pylist()


def test_what_another_command_made_is_said_in_one_sentence(tmp_path: Path) -> None:
    """Not every setting of both commands."""
    part = Run(tmp_path).partition("candidates", "ppo")
    part.begin(Lineage.of(ToySpec()).model_copy(update={"step": "train ppo"}))
    with pytest.raises(SpecConflict) as found:
        part.begin(Lineage.of(SampleSpec(model="m")))
    assert str(found.value) == (
        f"{part.path} was made by `prefdata train ppo`, and this is `prefdata sample`. Give the new one another name, "
        "or --replace the old one."
    )


def test_how_fields_do_not_conflict_what_fields_do(tmp_path: Path) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    part.begin(Lineage.of(ToySpec(batch=64)))
    with pytest.raises(SpecConflict, match=r"beta: 0\.5 -> 0\.1.*--replace"):
        part.begin(Lineage.of(ToySpec(beta=0.1)))
    part.append(scores("a"))
    part.begin(Lineage.of(ToySpec(beta=0.1)), replace=True)
    assert part.parts() == []


def test_rewrite_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.rewrite(scores("a"), Lineage.of(ToySpec()), report(1))
    with pytest.raises(InputError, match="unknown column"):
        part.rewrite(pa.table({"nope": [1]}), Lineage.of(ToySpec(beta=2.0)), report(1))
    assert part.read()["candidate_id"].to_pylist() == ["a"]
    assert part.state == "finished"
    assert [f.name for f in part.path.parent.iterdir()] == ["scorer=rm"]


def test_rewritten_bytes_are_equal(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Run(tmp_path / name).partition("scores", "rm").rewrite(scores("a", "b"), Lineage.of(ToySpec()), report(2))
    one, two = (Run(tmp_path / n).partition("scores", "rm").parts() for n in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two]
    assert one[0].read_bytes() == two[0].read_bytes()


def test_what_is_done_twice_is_kept_once(tmp_path: Path) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    part.append(scores("a", "b"))
    part.append(scores("b", "c", score=2.0))
    rows = part.read().to_pylist()
    assert [(r["candidate_id"], r["score"]) for r in rows] == [("a", 1.0), ("b", 2.0), ("c", 2.0)]


def test_leftovers_of_dead_processes_are_swept_and_living_ones_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    host, space, *_ = this_process().split("-")
    kept = [f"_tmp-{host}-{space}-{os.getppid()}-0-0a0b0c0d-x", f"_tmp-{host}-0a0b0c0d-{dead.pid}-7-0a0b0c0d-x"]
    for name in (*kept, f"_tmp-{host}-{space}-{dead.pid}-7-0a0b0c0d-x"):
        (part.path / name).write_bytes(b"half")
    part.begin(Lineage.of(ToySpec()))
    assert {f.name for f in part.path.iterdir()} == {"_spec.json", *kept}
    assert part.parts() == []
    (part.path / f"_tmp-{host}-{space}-{dead.pid}-7-0a0b0c0d-x").write_bytes(b"half")
    part.finish(report(0))  # by a worker that outlived another
    assert {f.name for f in part.path.iterdir()} == {"_SUCCESS", "_spec.json", *kept}


def test_only(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(NotReady, match=r"run `prefdata rank .*` first"):
        run.only("scores")
    run.partition("scores", "rm").begin(Lineage.of(ToySpec()))
    with pytest.raises(NotReady, match=r"unfinished.*, or take what is there with --partial\.$"):
        run.only("scores")
    assert run.only("scores", partial=True).name == "rm"
    run.partition("pairs", "rm").begin(Lineage.of(ToySpec()))
    with pytest.raises(NotReady, match=r"command again to finish it\.$"):  # export takes no --partial
        run.only("pairs")
    run.partition("scores", "rm").finish(report(0))
    assert run.only("scores").name == "rm"
    run.partition("scores", "rn").begin(Lineage.of(ToySpec()))
    with pytest.raises(UsageError, match=r"2 sets of scores \(rm, rn\): say which with --scorer"):
        run.only("scores")
    with pytest.raises(UsageError, match='Did you mean "rm"'):
        run.only("scores", "rmm")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a=b", "_x", "ü"])
def test_names_that_cannot_be_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        Run(tmp_path).partition("scores", name)


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.path.mkdir(parents=True)
    (part.path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="did not write"):
        part.begin(Lineage.of(ToySpec()))


def test_another_version_of_the_contract(tmp_path: Path) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    rows = scores("a")
    other = part.path / "other"
    pq.write_table(rows.replace_schema_metadata({"version": "99"}), other)
    other.rename(part.path / f"part-00000-{checksum(other)}.parquet")
    with pytest.raises(InputError, match="version 99 of the scores contract"):
        part.read()


def test_nulls_where_none_may_be(tmp_path: Path) -> None:
    rows = pa.table({"candidate_id": ["a", None], "prompt_id": ["p", "p"]})
    with pytest.raises(InputError, match="candidate_id is null in row 2"):
        SCORES.conform(rows)


def test_full_disk(small_disk: Path) -> None:
    part = Run(small_disk).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    part.append(scores("a"))
    with pytest.raises(StorageError, match=r"disk is full.*run the same command again"):
        part.append(scores(*(os.urandom(16).hex() for _ in range(40_000))))
    assert len(part.parts()) == 1
    assert part.read()["candidate_id"].to_pylist() == ["a"]
    assert not list(part.path.glob("_tmp*"))


def test_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match="read-only"):
        Run(small_disk).partition("scores", "rm").begin(Lineage.of(ToySpec()))


def test_compact_keeps_the_last_row_of_each_key(tmp_path: Path) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    for ids, score in (("ab", 1.0), ("bc", 2.0), ("d", 3.0), ("ad", 4.0)):
        part.append(scores(*ids, score=score))
    before = {p.name for p in part.parts()}
    compact(part, ["candidate_id"])
    found = [row for p in part.parts() for row in pq.read_table(p, partitioning=None).to_pylist()]
    assert {(r["candidate_id"], r["score"]) for r in found} == {("a", 4.0), ("b", 2.0), ("c", 2.0), ("d", 4.0)}
    assert len(found) == 4
    assert len({p.name for p in part.parts()} & before) == 2  # the parts without losers stay as they are
    again = {p.name: p.stat().st_mtime_ns for p in part.parts()}
    compact(part, ["candidate_id"])
    assert {p.name: p.stat().st_mtime_ns for p in part.parts()} == again


def test_compact_joins_many_small_parts(tmp_path: Path) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    for number in range(80):
        part.append(scores(f"x{number}", score=float(number)))
    compact(part, ["candidate_id"])
    assert len(part.parts()) == 1
    assert sorted(part.read()["score"].to_pylist()) == list(range(80))


def test_long_texts_make_more_parts_wherever_the_pieces_end() -> None:
    """Memory holds some parts at a time: a part of 250,000 rows of long texts would be gigabytes."""
    texts = pa.array([f"{n:01000}" for n in range(20_000)])
    empty = pa.table({"text": pa.array([], pa.string())})
    rows = pa.table({"text": texts})
    for size in (20_000, 4_096, 777):
        pieces = [rows.slice(start, size) for start in range(0, rows.num_rows, size)]
        found = list(rebatch(empty, pieces, 250_000, 9_000_000))
        assert [one.num_rows for one in found] == [12_288, 7_712]  # 9,000 rows are 9 MB; tables end at 4,096 rows
        assert pa.concat_tables(found).equals(rows)


def test_rows_that_come_in_pieces_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet's pages end where a chunk ends, so that chunks must not reach the file."""
    monkeypatch.setattr("prefdata.storage.partition.PART_ROWS", 200_000)
    ids = pa.array([f"{i * 7919:020x}" for i in range(250_000)])
    whole = {"candidate_id": ids, "prompt_id": ids, "text_hash": ids, "score": [i / 7 for i in range(250_000)]}
    same = {name: [row("c")[name]] * 250_000 for name in ("sampler", "sample_index", "round", "text_key", "chars")}
    rows = pa.table({**whole, **same})

    def pieces(size: int):
        for start in range(0, rows.num_rows, size):
            yield rows.slice(start, size)
        return report(rows.num_rows)

    found = []
    for size in (250_000, 200_000, 7_001):
        part = Run(tmp_path / str(size)).partition("scores", "rm")
        part.derive_in_pieces(Lineage.of(ToySpec()), lambda size=size: pieces(size))
        assert [pq.read_metadata(one).num_rows for one in part.parts()] == [200_000, 50_000]
        found.append([one.read_bytes() for one in part.parts()])
    assert found[0] == found[1] == found[2]


def test_what_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    part = Run(tmp_path).partition("scores", "rm")
    part.begin(Lineage.of(ToySpec()))
    part.append(scores("a"))

    def refuse(path: Path) -> None:  # a file's own mode stops nobody who is root, as tests often are
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pq, "read_metadata", refuse)
    with pytest.raises(InputError, match=r"^cannot read .*part-00000-\w+\.parquet: .*Permission denied"):
        part.checked_parts()


def test_a_long_name_is_refused_for_what_is_new_and_read_where_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(UsageError, match="101 characters"):
        run.partition("scores", "n" * 101)
    (tmp_path / "scores" / f"scorer={'n' * 101}").mkdir(parents=True)
    assert [one.name for one in run.partitions("scores")] == ["n" * 101]
    assert len(name_of("n" * 300)) == 100
    assert name_of("n" * 300 + "a") != name_of("n" * 300 + "b")
