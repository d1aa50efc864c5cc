"""Folders: what is replaced and what is never removed, one in the place of another, kills at every step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefdata.errors import InputError, NotReady, StorageError
from prefdata.specs import Spec, identity_field
from prefdata.storage import atomic, exchange
from prefdata.storage.artifact import Artifact
from prefdata.storage.lineage import Lineage
from prefdata.storage.report import Report
from prefdata.storage.run import Partition, Run
from prefdata.storage.schemas import SCORES


class Made(Spec):
    step = "made"
    n: int = identity_field(0, "x")


def report() -> Report:
    return Report(step="made", unit="rows", rows_in=0, rows_out=0)


def rows(n: int) -> pa.Table:
    return row(f"c{n}", float(n))


def row(candidate_id: str, score: float) -> pa.Table:
    copied = {"sampler": "s", "sample_index": 0, "round": 0, "text_key": 1, "chars": 1}
    return SCORES.from_rows([{"candidate_id": candidate_id, "prompt_id": "p", "score": score, **copied}])


def make(folder: Artifact, n: int, *, replace: bool = False) -> None:
    """Fill a folder with what only `n` makes: a README and two files deeper down."""

    def fill(path: Path) -> Report:
        (path / "data").mkdir()
        (path / "README.md").write_text(f"made of {n}")
        (path / "data/a").write_text("a" * n)
        (path / "data/b").write_text("b")
        return report()

    folder.remake(Lineage.of(Made(n=n)), fill, replace=replace)


def files(path: Path) -> dict[str, str]:
    return {
        str(one.relative_to(path)): one.read_text()
        for one in path.rglob("*")
        if one.is_file() and one.name not in ("_spec.json", "_SUCCESS")
    }


def whole(n: int) -> dict[str, str]:
    return {"README.md": f"made of {n}", "data/a": "a" * n, "data/b": "b"}


def test_other_files_stay_where_ours_are_replaced(tmp_path: Path) -> None:
    folder = Artifact(tmp_path / "out")
    make(folder, 1)
    others = {".git/objects/00": "x", "LICENSE": "mine", "data/notes.txt": "mine too"}
    for name, text in others.items():
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text(text)
    (folder.path / "link").symlink_to("LICENSE")
    make(folder, 2, replace=True)
    assert files(folder.path) == {**whole(2), **others, "link": "mine"}
    assert (folder.path / "link").is_symlink()
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["README.md", "data/a"])
def test_a_file_of_ours_that_somebody_edited_is_not_replaced(tmp_path: Path, name: str) -> None:
    folder = Artifact(tmp_path / "out")
    make(folder, 1)
    (folder.path / name).write_text("hers")
    with pytest.raises(InputError, match=rf"{name} was changed since .*Rename the file to keep it"):
        make(folder, 2, replace=True)
    assert files(folder.path) == {**whole(1), name: "hers"}
    (folder.path / name).rename(folder.path / "hers")
    make(folder, 2, replace=True)
    assert files(folder.path) == {**whole(2), "hers": "hers"}


def test_what_is_in_the_way_of_the_new_one_is_kept_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An export whose `_SUCCESS` is lost lists nothing: who wrote its files, nobody knows."""
    folder = Artifact(tmp_path / "out")
    make(folder, 1)
    (folder.path / "_SUCCESS").unlink()
    make(folder, 2, replace=True)
    assert files(folder.path) == whole(2)
    (kept,) = [one for one in tmp_path.iterdir() if one.name != "out"]
    assert files(kept) == whole(1)
    assert str(kept) in caplog.text
    make(folder, 3, replace=True)
    assert files(kept) == whole(1)


def foreign_places(path: Path) -> Iterator[tuple[Path, str]]:
    """Places that no command may remove, each with a word of the message that says why."""
    for name, file in (("thesis", "one.tex"), ("home", ".bashrc"), ("checkout", ".git/HEAD"), ("notes", "_notes.txt")):
        (path / name / file).parent.mkdir(parents=True)
        (path / name / file).write_text("precious")
        yield path / name, "did not write"
    (path / "file").write_text("precious")
    yield path / "file", "is a file"
    (path / "link").symlink_to(path / "thesis")
    yield path / "link", "symbolic link"
    (path / "dangling").symlink_to(path / "nowhere")
    yield path / "dangling", "symbolic link"
    (path / "spec").mkdir()
    (path / "spec/_spec.json").write_text('{"swagger": "2.0"}')
    yield path / "spec", "remove it yourself"
    yield Path(), "the folder that you are in"
    yield Path(".."), "the folder that you are in"
    yield Path("/"), "the folder that you are in"


def test_what_prefdata_never_made_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place, why in foreign_places(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=why):
            Artifact(place).begin(Lineage.of(Made()), replace=True)
        with pytest.raises(InputError, match=why):
            make(Artifact(place), 1, replace=True)
        with pytest.raises(InputError):
            make(Artifact(place), 1)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "thesis/one.tex").read_text() == "precious"


def test_a_mount_point_is_not_replaced(small_disk: Path) -> None:
    with pytest.raises(InputError, match=r"mount point.*Name a folder inside"):
        make(Artifact(small_disk), 1)
    make(Artifact(small_disk / "inside"), 1)


def test_a_full_disk_leaves_the_old_one(small_disk: Path) -> None:
    folder = Artifact(small_disk / "out")
    make(folder, 1)
    with pytest.raises(StorageError, match="disk is full"):
        make(folder, 1_000_000, replace=True)
    assert files(folder.path) == whole(1)
    assert folder.state == "finished"
    assert [one.name for one in small_disk.iterdir()] == ["out"]


def test_a_model_does_not_replace_an_export_or_a_table(tmp_path: Path) -> None:
    class Training(Spec):
        step = "train dpo"

    make(Artifact(tmp_path / "out"), 1)
    with pytest.raises(InputError, match="holds what `prefdata made` made, and `prefdata train dpo` does not replace"):
        Artifact(tmp_path / "out").begin(Lineage.of(Training()), replace=True)
    assert files(tmp_path / "out") == whole(1)


@pytest.mark.parametrize("command", ["sft", "rm", "dpo"])
def test_train_removes_no_folder_that_prefdata_never_made(
    prefdata: Any, write: Any, tmp_path: Path, tiny_policy: Path, command: str
) -> None:
    data = write({"prompt": "Say a.", "completion": "A.", "chosen": "A.", "rejected": "B."})
    thesis = tmp_path / "thesis/chapters/one.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("precious")
    model = shutil.copytree(tiny_policy, tmp_path / "mine")
    for out in (tmp_path / "thesis", thesis, model):
        for more in ([], ["--replace"]):
            code, _, err = prefdata("train", command, data, "--model", tiny_policy, "--out", out, *more)
            assert (code, len(err.splitlines())) == (2, 1)
            assert str(out) in err
    assert thesis.read_text() == "precious"
    assert sorted(one.name for one in model.iterdir()) == sorted(one.name for one in tiny_policy.iterdir())


def test_train_does_not_replace_the_model_that_it_starts_from(
    prefdata: Any, write: Any, tmp_path: Path, tiny_policy: Path
) -> None:
    data, out = write({"prompt": "Say a.", "completion": "A."}), tmp_path / "out"
    assert prefdata("train", "sft", data, "--model", tiny_policy, "--out", out)[0] == 0
    before = (out / "model.safetensors").read_bytes()
    code, _, err = prefdata("train", "sft", data, "--model", out, "--out", out, "--replace")
    assert (code, "is the model that training starts from" in err) == (2, True)
    assert (out / "model.safetensors").read_bytes() == before
    (out / "NOTES.md").write_text("mine")
    (out / "config.json").write_text("{}")
    code, _, err = prefdata("train", "sft", data, "--model", tiny_policy, "--out", out, "--replace", "--lr", "1e-3")
    assert (code, "config.json was changed" in err) == (2, True)
    (out / "config.json").unlink()
    code, _, err = prefdata("train", "sft", data, "--model", tiny_policy, "--out", out)
    assert (code, "lacks files of the model" in err) == (2, True)
    assert prefdata("train", "sft", data, "--model", tiny_policy, "--out", out, "--replace", "--lr", "1e-3")[0] == 0
    assert (out / "NOTES.md").read_text() == "mine"
    assert (out / "model.safetensors").read_bytes() != before


# One in the place of another


@pytest.fixture(params=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that can exchange two names, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(exchange, "exchange", lambda one, other: False)
    return str(request.param)


def test_readers_never_see_nothing(tmp_path: Path, system: str) -> None:
    """Read while a partition is replaced again and again: it is always there, whole, and of one making."""
    partition = Run(tmp_path).partition("scores", "rm")
    partition.rewrite(rows(0), Lineage.of(Made(n=0)), report())
    done = threading.Event()

    def replaces() -> None:
        for n in range(1, 20):
            partition.rewrite(rows(n), Lineage.of(Made(n=n)), report())
        done.set()

    thread = threading.Thread(target=replaces)
    thread.start()
    looks = 0
    while not done.is_set():
        (again,) = Run(tmp_path).partitions("scores")
        assert again.state == "finished"
        assert again.checked_parts()
        looks += 1
    thread.join()
    assert looks > 5
    assert partition.read()["candidate_id"].to_pylist() == ["c19"]
    assert [one.name for one in partition.path.parent.iterdir()] == ["scorer=rm"]


def test_two_processes_that_make_the_same_at_once(tmp_path: Path, system: str) -> None:
    threads = [threading.Thread(target=lambda n=n: make(Artifact(tmp_path / "out"), n, replace=True)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if system == "exchange":  # with two renames one of the two may fail
        assert files(tmp_path / "out") in (whole(1), whole(2))


def test_names_of_one_another_touch_only_their_own(tmp_path: Path) -> None:
    """`exports/trl` beside `exports/my-trl`, and names with what a shell takes for a pattern."""
    names = ["trl", "my-trl", "a[1]", "a1", "b*", "bb", "c?", "x" * 200]
    folders = [Artifact(tmp_path / "ex[a]ports" / name) for name in names]
    owner = atomic.this_process().replace(str(os.getpid()), "999999")
    for folder in folders:
        make(folder, 1)
        left = atomic.temporary_name(folder.path, "new").name.replace(atomic.this_process(), owner)
        (folder.path.parent / left).mkdir()
    for number, folder in enumerate(folders, 1):
        make(folder, 2, replace=True)
        assert (
            len([one for one in folder.path.parent.iterdir() if atomic.is_temporary(one.name)]) == len(names) - number
        )
    assert all(files(folder.path) == whole(2) for folder in folders)


def test_a_run_whose_path_looks_like_a_pattern(prefdata: Any, write: Any, tmp_path: Path) -> None:
    """`run[1]*?` has a neighbour that the pattern fits: no row of it may come in."""
    data = [{"prompt": f"Say {i}.", "responses": [f"{i} a", f"{i} bb"], "score": i} for i in range(3)]
    function = tmp_path / "f.py"
    function.write_text("def f(messages, answer):\n    return len(answer)\n")
    for name, lines in (("run[1]*?", data[:2]), ("run1xy", data)):
        run = tmp_path / name
        for command in (
            ["ingest", run, write(*lines), "--as", "candidates"],
            ["rank", run, "--function", f"{function}:f"],
            ["select", run, "--method", "best-of-n", "--where", "split in ('train', 'test')"],
            ["pair", run, "--selector", "all"],
            ["export", run, "--to", run / "exports/a[1]"],
        ):
            assert prefdata(*command)[0] == 0, command
    run = tmp_path / "run[1]*?"
    assert prefdata("sql", run, "select count(*) as n from answers")[1] == "n\n4\n"
    assert prefdata("status", run, "--format", "csv")[1].count("finished") == 7
    assert prefdata("check", "run", run)[0] == 0


# kill -9


def killed_at(kind: str, path: Path, at: int) -> bool:
    """Replace what is at `path` in a process that is killed before it touches the disk for the `at`th time."""
    child = os.fork()
    if child == 0:
        try:
            _replace_until(kind, path, at)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _replace_until(kind: str, path: Path, at: int) -> None:
    count = 0
    touching = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")

    def audit(event: str, arguments: Any) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in touching or writes) and str(path.parent) in str(arguments[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kind.endswith("two renames"):
        exchange.exchange = lambda one, other: False
    sys.addaudithook(audit)
    if kind.startswith("folder"):
        make(Artifact(path), 2, replace=True)
    else:
        _table(path).rewrite(rows(2), Lineage.of(Made(n=2)), report())


def _table(path: Path) -> Partition:
    return Run(path.parents[1]).partition("scores", "rm")


def _seen(kind: str, path: Path) -> Any:
    if kind.startswith("folder"):
        return Artifact(path).state, files(path)
    return _table(path).state, _table(path).read()["candidate_id"].to_pylist()


def _begin(kind: str, path: Path) -> None:
    shutil.rmtree(path.parents[1], ignore_errors=True)
    if kind.startswith("folder"):
        make(Artifact(path), 1)
        (path / ".git").mkdir()
        (path / ".git/HEAD").write_text("mine")
    else:
        _table(path).rewrite(rows(1), Lineage.of(Made(n=1)), report())


@pytest.mark.parametrize("kind", ["folder, exchange", "folder, two renames", "table, exchange", "table, two renames"])
def test_killed_at_every_step_there_is_the_old_one_or_the_new_one(tmp_path: Path, kind: str) -> None:
    """kill -9 before each change on disk that replacing a folder makes, one after the other, until none is left."""
    path = tmp_path / "run/scores/scorer=rm"
    old, new = (
        ({**whole(1), ".git/HEAD": "mine"}, {**whole(2), ".git/HEAD": "mine"})
        if kind.startswith("folder")
        else (["c1"], ["c2"])
    )
    seen = []
    for at in range(1, 100):
        _begin(kind, path)
        killed = killed_at(kind, path, at)
        state, found = _seen(kind, path)
        if kind.startswith("folder"):  # `.git` moves from the old one to the new one, and is in neither for a moment
            found = {".git/HEAD": "mine", **found}
        assert state == "finished"
        assert found in (old, new), at
        seen.append(found)
        if not killed:
            break
        make(Artifact(path), 3, replace=True) if kind.startswith("folder") else _table(path).rewrite(
            rows(3), Lineage.of(Made(n=3)), report()
        )
        assert [one.name for one in path.parent.iterdir()] == ["scorer=rm"], at
        if kind.startswith("folder"):
            assert files(path) == {**whole(3), ".git/HEAD": "mine"}, at
    assert seen[0] == old
    assert seen[-1] == new
    assert len(seen) > 15


def test_a_temporary_name_tells_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One host name, one process id, and yet another process: another boot or container, or a number used again."""
    mine = atomic.temporary_name(tmp_path / "x")
    assert atomic.owner_is_alive(atomic.this_process()) is True
    assert not atomic.is_abandoned(mine)
    host, space, pid, start = atomic.this_process().split("-")
    assert atomic.owner_is_alive(f"{host}-{space}-{pid}-{int(start) + 1}") is False
    assert atomic.owner_is_alive(f"{host}-{space}-999999-{start}") is False
    assert atomic.owner_is_alive(f"{host}-0a0b0c0d-{pid}-{start}") is None
    child = subprocess.Popen(["true"])
    time.sleep(0.2)  # it has ended, and nobody has asked how
    assert atomic.owner_is_alive(f"{host}-{space}-{child.pid}-{start}") is False
    child.wait()
    foreign = tmp_path / mine.name.replace(space, "0a0b0c0d")
    foreign.write_text("")
    assert not atomic.is_abandoned(foreign)
    os.utime(foreign, (time.time() - 8 * 86_400,) * 2)
    assert atomic.is_abandoned(foreign)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part overwrites another's, also where several processes give theirs the same number."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    partition = Run(tmp_path).partition("scores", "rm")
    partition.begin(Lineage.of(Made()))
    monkeypatch.setattr(Partition, "parts", lambda self, real=Partition.parts: [] if appending else real(self))
    appending = True
    for n in range(5):
        partition.append(rows(n))
    appending = False
    assert [part.name[:10] for part in partition.parts()] == ["part-00000"] * 5
    assert sorted(partition.read()["candidate_id"].to_pylist()) == [f"c{n}" for n in range(5)]


def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Of what was drawn again the later part counts, also behind number 99,999."""
    partition = Run(tmp_path).partition("scores", "rm")
    partition.begin(Lineage.of(Made()))
    first = partition.append(row("c", 1.0))
    first.rename(first.with_name(first.name.replace("00000", "99999")))
    partition.append(row("c", 2.0))
    assert [part.name.split("-")[1] for part in partition.parts()] == ["99999", "100000"]
    assert partition.read()["score"].to_pylist() == [2.0]


def test_not_ready_stays_not_ready(tmp_path: Path) -> None:
    """A run without a table, and one that holds only what a process was building when it was killed."""
    (tmp_path / "scores" / atomic.temporary_name(Path("scorer=rm"), "new").name).mkdir(parents=True)
    with pytest.raises(NotReady, match="no scores yet"):
        Run(tmp_path).only("scores")


Call = Callable[..., tuple[int, str, str]]


def test_an_export_keeps_what_is_not_ours_and_refuses_an_edited_readme(
    prefdata: Call, write: Any, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    prefdata("ingest", run, write({"prompt": "Say a.", "chosen": "A.", "rejected": "Bb."}), "--as", "candidates")
    function = tmp_path / "f.py"
    function.write_text("def f(messages, answer):\n    return len(answer)\n")
    prefdata("rank", run, "--function", f"{function}:f")
    prefdata("pair", run, "--selector", "all")
    export = ["export", run, "--to", out]
    assert prefdata(*export)[0] == 0
    (out / ".git").mkdir()
    (out / ".git/HEAD").write_text("ref")
    (out / "LICENSE").write_text("mine")
    readme = (out / "README.md").read_text()
    (out / "README.md").write_text(readme + "\nMore of mine.\n")
    for more in (["--strict-columns", "--replace"], ["--replace"]):
        code, _, err = prefdata(*export, *more)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "README.md was changed" in err
    assert (out / "README.md").read_text().endswith("More of mine.\n")
    code, said, _ = prefdata("check", "run", out)
    assert (code, "README.md" in said) == (1, True)
    (out / "README.md").write_text(readme)
    assert prefdata(*export, "--strict-columns", "--replace")[0] == 0
    assert ((out / ".git/HEAD").read_text(), (out / "LICENSE").read_text()) == ("ref", "mine")
    assert prefdata("check", "run", out)[0] == 0
    assert json.loads((out / "_spec.json").read_text())["spec"]["strict_columns"] is True


def test_a_table_that_is_replaced_while_it_is_read_is_no_bug(
    prefdata: Call, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    prefdata("ingest", run, write({"prompt": "Say a.", "responses": ["a", "b"]}), "--as", "candidates")
    real = Partition.checked_parts

    def replaced_then(self: Partition) -> list[Path]:
        parts = real(self)
        for part in parts:
            part.unlink()
        return parts

    monkeypatch.setattr(Partition, "checked_parts", replaced_then)
    code, _, err = prefdata("curves", run, "--scorer", "f")
    assert "bug" not in err
    function = tmp_path / "f.py"
    function.write_text("def f(messages, answer):\n    return len(answer)\n")
    code, _, err = prefdata("rank", run, "--function", f"{function}:f")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "another process replaced what was being read" in err


def test_a_file_system_that_cannot_wait_for_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SMB answers EINVAL when a folder is to be synced; what is wrong with a file is still an error."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    make(Artifact(tmp_path / "out"), 1)
    assert files(tmp_path / "out") == whole(1)
