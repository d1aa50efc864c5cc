"""explain RUN CANDIDATE_ID: a candidate's scores, its rank, and what each selection and pairing made of it."""

from __future__ import annotations

import shutil

import pytest

from prefdata.errors import InputError
from prefdata.explore.explain_candidate import explain_candidate
from prefdata.specs import IngestSpec, RankSpec, SampleSpec, SelectSpec
from prefdata.specs.non_default import non_default_settings
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import TABLES


def candidates(run: Run) -> list[dict]:
    """The draws 0, 1 and 2 of the first prompt by `policy`; conftest's scores of them are 1, 3 and 2."""
    return run.partition("candidates", "policy").read().to_pylist()[:3]


def test_scores_rank_selections_and_pairs_of_a_candidate(run: Run) -> None:
    """Of the prompt's six scores 1, 3, 2 and 4, 3, 5 the second is third, level with the fifth: two are higher."""
    worst, best, _ = candidates(run)
    found = explain_candidate(run, best["candidate_id"][:12])
    assert found.candidate["text"] == best["text"]
    assert found.prompt["prompt_id"] == best["prompt_id"]
    assert found.scores.rows() == [("rm", 3.0, 3, 6)]
    assert found.selections == {"best": (1, None), "top": (1, None)}
    # `main` pairs the best with the worst of the three selected
    (row,) = found.pairs.rows(named=True)
    assert (row["pairing"], row["side"], row["other_id"], row["margin"]) == ("main", "chosen", worst["candidate_id"], 2)
    assert [lineage.step for _, lineage in found.lineages] == ["sample", "rank"]


def test_why_a_candidate_was_not_selected(run: Run, prefdata) -> None:
    worst = candidates(run)[0]["candidate_id"]
    assert explain_candidate(run, worst).selections == {"best": (None, "passed_over"), "top": (3, None)}
    code, out, _ = prefdata("explain", run.path, worst)
    assert code == 0
    assert "  best: not selected, it was eligible and not kept by the method\n" in out
    assert "  top: selected, rank 3\n" in out
    assert "  rm: 1, rank 6 of 6 of this prompt\n" in out


def test_a_candidate_without_scores_and_pairs(run: Run, prefdata) -> None:
    for table in ("scores", "selections", "pairs"):
        shutil.rmtree(run.path / table)
    code, out, _ = prefdata("explain", run.path, candidates(run)[0]["candidate_id"])
    assert (code, out.count("\n  none\n")) == (0, 2)


@pytest.mark.parametrize("given", ["zzz", ""])
def test_no_such_candidate_and_several(run: Run, given: str) -> None:
    message = "no candidate 'zzz'" if given else "24 candidates begin with ''"
    with pytest.raises(InputError, match=message):
        explain_candidate(run, given)


def test_an_id_that_begins_a_pair_and_a_candidate(run: Run, prefdata) -> None:
    code, out, err = prefdata("explain", run.path, "")
    assert (code, out) == (2, "")
    assert "a pair and a candidate begin with ''" in err


def test_line_breaks_are_shown_and_control_characters_escaped(run: Run, prefdata) -> None:
    rows = run.partition("candidates", "policy").read().to_pylist()
    rows[0]["text"] = "One.\nTwo \x1b[31mred\x1b[0m.\n"
    report = Report(step="sample", unit="rows", rows_in=len(rows), rows_out=len(rows))
    table = TABLES["candidates"].from_rows(rows)
    run.partition("candidates", "policy").rewrite(table, Lineage.of(SampleSpec(model="policy")), report)
    code, out, _ = prefdata("explain", run.path, rows[0]["candidate_id"])
    assert code == 0
    assert "\n  One.\n  Two \\x1b[31mred\\x1b[0m.\n" in out


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (SampleSpec(model="m", n=4, temperature=0.7), {"temperature": 0.7}),
        (SelectSpec(method="rso", k=8, beta=0.25), {"beta": 0.25}),
        (RankSpec(reward_model="rm"), {"reward_model": "rm"}),
        (RankSpec(judge="j", seed=3), {"judge": "j", "seed": 3}),
        (IngestSpec(), {}),
    ],
)
def test_settings_at_their_defaults_are_not_shown(spec, settings: dict) -> None:
    """`select` is RSO with k = 8 unless told otherwise; a sampler's n is not part of its identity."""
    shown = non_default_settings(spec.step, spec.identity())
    assert {name: value for name, value in shown.items() if name not in ("model", "format")} == settings
