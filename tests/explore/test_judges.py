"""eval judges: consistency under swap and agreement, through the run and the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefdata import ids
from prefdata.errors import NotReady, UsageError
from prefdata.explore.judges import judges
from prefdata.specs import RankSpec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import COMPARISONS


def fill(run: Run, judge: str, said: list[tuple[str, float | None]]) -> None:
    """Verdicts on the same pairs in order: each `order` and probability that the first is better."""
    first, second = ids.digest("a"), ids.digest("b")
    rows = [
        {
            "first_id": first,
            "second_id": second if number < 2 else ids.digest("c"),
            "order": order,
            "annotator": judge,
            "prompt_id": ids.digest("p"),
            "probability": probability,
            "verdict": "unparsable" if probability is None else "first" if probability > 0.5 else "second",
        }
        for number, (order, probability) in enumerate(said)
    ]
    partition = run.partition("comparisons", judge)
    partition.begin(Lineage.of(RankSpec(pairwise=judge)))
    partition.append(COMPARISONS.from_rows(rows))
    partition.finish(Report(step="rank", unit="comparisons", rows_in=len(rows), rows_out=len(rows)))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    both = ["first-second", "second-first"] * 2
    # steady says the same of both pairs in both orders; placed always prefers what is shown first.
    fill(run, "steady", list(zip(both, [0.9, 0.8, 0.2, 0.1], strict=True)))
    fill(run, "placed", list(zip(both, [0.9, 0.1, 0.9, None], strict=True)))
    return run


def test_alone_and_together(run: Run) -> None:
    alone, together = judges(run)
    rows = {row["annotator"]: row for row in alone.iter_rows(named=True)}
    assert (rows["steady"]["consistency"], rows["steady"]["both_orders"]) == (1.0, 2)
    assert (rows["placed"]["consistency"], rows["placed"]["null"]) == (0.0, 1)
    assert rows["placed"]["first_position_rate"] == 1.0
    assert together.row(0, named=True)["pairs"] == 2


def test_the_command(run: Run, prefdata) -> None:
    code, out, _ = prefdata("eval", "judges", run.path, "--format", "csv")
    assert code == 0
    assert out.splitlines()[0].startswith("annotator,comparisons,null")
    assert "kappa" in out


def test_what_is_not_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='Did you mean "steady"'):
        judges(run, ("stedy",))
    with pytest.raises(NotReady, match="prefdata rank"):
        judges(Run(tmp_path / "none"))
