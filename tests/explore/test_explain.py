"""explain: a pair with everything that led to it."""

from __future__ import annotations

import pytest

from prefdata.errors import InputError, NotReady
from prefdata.explore.explain import explain
from prefdata.store import Run


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
    with pytest.raises(InputError, match="no pair 'zzz'"):
        explain(run, "zzz")


def test_no_pairs_yet(tmp_path) -> None:
    with pytest.raises(NotReady, match="prefdata pair"):
        explain(Run(tmp_path), "x")
