"""explain: a pair with everything that led to it."""

from __future__ import annotations

import shutil

import pytest

from prefdata import ids
from prefdata.errors import InputError, NotReady, UsageError
from prefdata.explore.explain import explain
from prefdata.pairs.pair import pair as make_pairs
from prefdata.specs import IngestSpec, PairSpec, RankSpec, SampleSpec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import TABLES


def pairs(run: Run) -> list[dict]:
    return run.partition("pairs", "main").read().to_pylist()


def test_everything_is_there(run: Run) -> None:
    pair = pairs(run)[0]
    told = explain(run, pair["pair_id"])
    assert told.pair["pairing"] == "main"
    assert told.prompt["prompt_id"] == pair["prompt_id"]
    assert told.chosen["candidate_id"] == pair["chosen_id"]
    assert told.rejected["sampler"] == "policy"
    assert told.standing["score"].is_sorted(descending=True)
    assert told.standing.height == 6
    chosen = told.standing.filter(told.standing["candidate_id"] == pair["chosen_id"]).row(0, named=True)
    assert chosen["selected"] == 1
    assert [step for _, lineage in told.lineages for step in [lineage.step]] == ["pair", "select", "sample", "rank"]


def test_by_the_beginning_of_the_id(run: Run) -> None:
    pair = pairs(run)[0]
    assert explain(run, pair["pair_id"][:12]).pair["pair_id"] == pair["pair_id"]
    with pytest.raises(InputError, match="4 pairs begin with ''"):
        explain(run, "")
    with pytest.raises(InputError, match="no pair or candidate 'zzz'"):
        explain(run, "zzz")


def test_no_pairs_yet(tmp_path) -> None:
    with pytest.raises(NotReady, match="prefdata pair"):
        explain(Run(tmp_path), "x")


def put(run: Run, table: str, name: str, spec, rows: list[dict]) -> None:
    report = Report(step=spec.step, unit="rows", rows_in=len(rows), rows_out=len(rows))
    run.partition(table, name).rewrite(TABLES[table].from_rows(rows), Lineage.of(spec), report)


@pytest.fixture
def paired_twice(run: Run) -> Run:
    """The pairs `main`, of margin 2, and the same ones once more in `twice`, whose scorer doubles every score."""
    rows = run.partition("scores", "rm").read().to_pylist()
    put(
        run, "scores", "doubled", RankSpec(reward_model="doubled"), [{**row, "score": 2 * row["score"]} for row in rows]
    )
    make_pairs(run, PairSpec(selector="all", scorer="doubled", sampler=("policy",), name="twice"))
    assert [row["pair_id"] for row in run.partition("pairs", "twice").read().to_pylist()] == [
        row["pair_id"] for row in pairs(run)
    ]
    return run


def test_each_pairing_has_its_own_label_for_a_pair(paired_twice: Run, prefdata) -> None:
    pair = pairs(paired_twice)[0]
    for pairing, scorer, margin in (("main", "rm", 2.0), ("twice", "doubled", 4.0)):
        told = explain(paired_twice, pair["pair_id"], pairing)
        assert (told.pair["pairing"], told.pair["scorer"], told.pair["margin"]) == (pairing, scorer, margin)
        assert told.lineages[-1][0] == f"scores/{scorer}"
        for asked in ([pair["pair_id"]], [pair["rejected_id"], pair["chosen_id"]]):
            code, out, _ = prefdata("explain", paired_twice.path, *asked, "--pairing", pairing)
            assert (code, out.splitlines()[0]) == (0, f"pair {pair['pair_id']} of {pairing}")
            assert f"{scorer} scores the chosen one {margin:g} higher" in out


def test_which_pairing_must_be_said_where_several_hold_the_pair(paired_twice: Run, prefdata) -> None:
    pair_id = pairs(paired_twice)[0]["pair_id"]
    code, out, err = prefdata("explain", paired_twice.path, pair_id[:12])
    assert (code, out) == (2, "")
    assert err == f"prefdata: pair {pair_id} is in 2 pairings (main, twice): name one with --pairing.\n"
    with pytest.raises(UsageError, match=r'no pairs named \'twise\'. Did you mean "twice"'):
        explain(paired_twice, pair_id, "twise")


def test_a_pair_of_another_pairing(run: Run) -> None:
    make_pairs(run, PairSpec(selector="all", name="of-all"))
    (alone,) = {row["pair_id"] for row in run.partition("pairs", "of-all").read().to_pylist()[:1]}
    assert explain(run, alone).pair["pairing"] == "of-all"
    with pytest.raises(InputError, match=rf"pairs/main has no pair '{alone}': .* --pairing .*\(of-all\)"):
        explain(run, alone, "main")


@pytest.mark.parametrize("gone", ["candidates/sampler=policy", "candidates", "prompts"])
def test_what_the_run_does_not_hold_any_more(run: Run, prefdata, gone: str) -> None:
    pair = pairs(run)[0]
    shutil.rmtree(run.path / gone)
    lost = {"prompts": f"prompt {pair['prompt_id']}"}.get(
        gone, f"candidate {pair['chosen_id']}, candidate {pair['rejected_id']}"
    )
    code, out, err = prefdata("explain", run.path, pair["pair_id"])
    assert (code, out) == (2, "")
    assert err == (
        f"prefdata: pair {pair['pair_id']} of pairs/main names rows missing in {run} ({lost}). "
        "Run `prefdata pair` again.\n"
    )


def test_a_candidate_is_not_a_pair(run: Run) -> None:
    candidate = pairs(run)[0]["chosen_id"]
    for given in (candidate, candidate[:12]):
        with pytest.raises(InputError, match=f"'{given}' is a candidate, not a pair"):
            explain(run, given)


@pytest.mark.parametrize("scores", ["of others", "of the judge's name", "none"])
def test_a_pair_from_comparisons_has_no_scores_behind_it(run: Run, prefdata, scores: str) -> None:
    """Also where a scorer has the judge's name: its scores had no part in the label."""
    scored = pairs(run)[0]
    judge = "rm" if scores == "of the judge's name" else "people"
    # the verdict turns the scores' preference round
    verdict = {"first_id": scored["rejected_id"], "second_id": scored["chosen_id"], "prompt_id": scored["prompt_id"]}
    said = {"order": "first-second", "annotator": judge, "probability": 1.0, "verdict": "first"}
    put(run, "comparisons", judge, IngestSpec.parse({"as": "comparisons"}), [{**verdict, **said}])
    make_pairs(run, PairSpec(strategy="comparisons", name="said"))
    if scores == "none":
        shutil.rmtree(run.path / "scores")
    pair_id = ids.pair_id(scored["rejected_id"], scored["chosen_id"])
    told = explain(run, pair_id)
    assert told.standing.height == 0
    assert [name for name, _ in told.lineages] == ["pairs/said", f"comparisons/{judge}", "candidates/policy"]
    code, out, err = prefdata("explain", run.path, pair_id)
    assert (code, err) == (0, "")
    assert "best first" not in out
    chosen, rejected = scored["rejected_id"][:8], scored["chosen_id"][:8]
    assert (
        f"why: {judge} prefers the chosen one (probability 1.000 that the label is right, weight 1)\n\n"
        "judgments:\n"
        f"  {judge}, shown {chosen} and then {rejected}: prefers {chosen} (1.000 that {chosen} is better)\n\n"
        "made by:\n"
    ) in out
    assert "score" not in out.split("made by:")[0]
    assert "seed=0" not in out


def test_an_answer_that_two_samplers_drew_stands_once(run: Run) -> None:
    again = run.partition("candidates", "policy").read().to_pylist()
    put(run, "candidates", "the-same-law", SampleSpec(model="policy"), again)
    told = explain(run, pairs(run)[0]["pair_id"])
    assert told.standing.height == 6
    assert told.chosen["sampler"] == "policy"
