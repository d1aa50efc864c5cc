"""Why an answer is not in a selection: for the same reasons, and as often, as the Report counts them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scored_runs import answer, scored_run

from prefdata import SelectSpec, ids, select
from prefdata.errors import UsageError
from prefdata.selections.explain import PASSED_OVER, explain_selection
from prefdata.storage.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two prompts; of `p`: 5, 4, 4 (the same text), 3 (cut off), none, 1 (of round 1), and 2 by another sampler."""
    more: list[dict[str, Any]] = [
        {},
        {"text": "same"},
        {"text": " same\n"},
        {"finish_reason": "length"},
        {},
        {"round": 1},
    ]
    rows = [
        answer("p", i, score, **said) for i, (score, said) in enumerate(zip([5, 4, 4, 3, None, 1], more, strict=True))
    ]
    rows += [answer("p", 0, 2.0, sampler="hot"), answer("q", 0, 7.0)]
    return scored_run(tmp_path / "run", rows)


@pytest.mark.parametrize(
    "said",
    [
        {"method": "top-k", "k": 2},
        {"method": "best-of-n", "pool": "latest"},
        {"method": "rso", "k": 1, "pool": "mix"},
        {"method": "threshold", "threshold": 3.0, "truncated": "keep", "duplicates": "keep"},
        {"method": "top-k", "k": 3, "where": "sample_index < 2"},
        {"method": "top-k", "k": 2, "diverse": 0.5},
    ],
    ids=lambda said: "-".join(map(str, said.values())),
)
def test_as_often_as_the_report_says(run: Run, said: dict[str, Any]) -> None:
    report = select(run, SelectSpec(**said, name="made")).report
    found = Counter(why for prompt in ("p", "q") for why in explain_selection(run, "made", ids.digest(prompt)).values())
    assert found.pop(None, 0) == report.rows_out
    assert found.pop(PASSED_OVER, 0) == report.dropped.get("not_selected", 0)
    assert found == {reason: n for reason, n in report.dropped.items() if reason != "not_selected"}


def test_there_is_no_such_selection(run: Run) -> None:
    select(run, SelectSpec(method="top-k", k=2))
    with pytest.raises(UsageError, match="no selections named 'top-k-3'"):
        explain_selection(run, "top-k-3", ids.digest("p"))
