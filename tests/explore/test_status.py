"""status: what is there, what is unfinished, and what to do about it."""

from __future__ import annotations

from prefdata.explore.status import status
from prefdata.store import Run


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
