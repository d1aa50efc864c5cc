"""Files that a user names for a result (`curves --out`, `eval reward-model --rows`): an older one is not lost."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TextIO

import pytest

from prefdata.errors import StorageError
from prefdata.explore import reward_models
from prefdata.storage.atomic import write_output


def break_off(file: TextIO) -> None:
    file.write("half")
    file.flush()
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_write_that_breaks_off_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("older")
    with pytest.raises(StorageError, match="the disk is full"):
        write_output(path, break_off)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("points.csv", "older")]
    write_output(path, lambda file: file.write("né\n"))
    assert path.read_bytes() == b"n\xc3\xa9\n"


def test_a_link_stays_one_and_a_device_is_written_directly(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("points.csv")
    write_output(tmp_path / "link", lambda file: file.write("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "points.csv").read_text() == "new"
    write_output(Path("/dev/null"), lambda file: file.write("new"))
    assert not Path("/dev/null").is_file()


def test_rows_that_cannot_be_computed_leave_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("older")
    monkeypatch.setattr(reward_models, "_rows", lambda *_: iter([{"prompt": "\ud800"}]))
    with pytest.raises(UnicodeEncodeError):
        reward_models.write_rows(path, [], {})
    assert path.read_text() == "older"
