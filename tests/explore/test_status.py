"""status: what is there, what is unfinished, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prefdata.explore.status import status
from prefdata.storage.run import Run


def test_finished_and_unfinished(run: Run) -> None:
    (run.path / "scores/scorer=rm/_SUCCESS").unlink()
    rows = {(row["table"], row["name"]): row for row in status(run)}
    assert list(rows) == [
        ("prompts", "asked"),
        ("candidates", "policy"),
        ("candidates", "tuned"),
        ("scores", "rm"),
        ("selections", "best"),
        ("selections", "top"),
        ("pairs", "main"),
    ]
    assert rows["candidates", "policy"]["rows"] == 12
    assert rows["candidates", "policy"]["state"] == "finished"
    assert rows["candidates", "policy"]["made_by"] == "sample"
    assert rows["scores", "rm"]["state"] == "unfinished"
    assert rows["scores", "rm"]["next"] == "run the same `prefdata rank` command again to finish it"


@pytest.mark.parametrize("damage", [lambda whole: whole[:200], lambda whole: whole[:-200] + b"\xa5" * 192 + whole[-8:]])
def test_a_damaged_part_is_named_and_the_others_are_told(run: Run, damage: Callable[[bytes], bytes]) -> None:
    (part,) = (run.path / "scores/scorer=rm").glob("part-*")
    part.write_bytes(damage(part.read_bytes()))
    rows = {(row["table"], row["name"]): row for row in status(run)}
    assert rows["scores", "rm"]["state"] == "damaged"
    assert rows["scores", "rm"]["rows"] is None
    assert rows["scores", "rm"]["next"].startswith(f"{part} is damaged: ")
    assert rows["pairs", "main"]["state"] == "finished"
    assert len(rows) == 7
