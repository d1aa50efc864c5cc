"""pair from files to files: the same bytes however much is held, and where pairs go from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scored_runs import answer, scored_run, write

from prefdata import ids
from prefdata.errors import InputError, NotReady, SpecConflict, UsageError
from prefdata.exports.export import export
from prefdata.pairs import pair as pair_step
from prefdata.pairs.pair import pair
from prefdata.scored import reader
from prefdata.selections.select import select
from prefdata.specs import ExportSpec, PairSpec, SelectSpec
from prefdata.storage.run import Run

PROMPTS, EACH = 15, 10
KINDS: list[dict[str, Any]] = [
    {"strategy": "best-worst"},
    {"strategy": "best-worst", "per_prompt": 2},
    {"strategy": "best-random"},
    {"strategy": "random-labelled", "per_prompt": 5},
    {"strategy": "first-round"},
    {"strategy": "tournament"},
    {"strategy": "adjacent"},
    {"strategy": "all", "max_per_candidate": 3},
    {"strategy": "top-bottom", "top": 2, "bottom": 3},
    {"strategy": "length-matched", "per_prompt": 3},
    {"strategy": "against-reference", "reference": "hot"},
    {"strategy": "against-reference", "reference": "hot", "trust_reference": True},
    {"strategy": "cross-sampler", "balance": "sampler"},
    {"strategy": "first-round", "balance": "sampler"},
    {"as_": "unpaired"},
    {"as_": "groups"},
    {"as_": "demonstrations"},
]


def answers() -> list[dict[str, Any]]:
    numbers = np.random.default_rng(0)
    return [
        answer(
            f"prompt {p}", i, round(float(numbers.normal()), 1), sampler=sampler,
            text="x" * int(numbers.integers(0, 30)) + f" {p} {i}" * int(numbers.integers(0, 2)),
            finish_reason="length" if numbers.random() < 0.1 else "stop",
        )
        for sampler in ("policy", "hot")
        for p in range(PROMPTS)
        for i in range(EACH // 2)
    ]  # fmt: skip


def written(run: Run, spec: PairSpec) -> dict[str, bytes]:
    pair(run, spec, replace=True)
    return {part.name: part.read_bytes() for part in run.partition(spec.as_, "it").parts()}


def rows_of(run: Run, name: str) -> pl.DataFrame:
    return pl.DataFrame(run.partition("pairs", name).read())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same answers in one part in order, and in disorder in 100 parts of candidates by two samplers and scores."""
    folder, rows = tmp_path_factory.mktemp("runs"), answers()
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    return scored_run(folder / "whole", rows), scored_run(folder / "parts", shuffled, parts=100)


@pytest.mark.parametrize("asked", KINDS, ids=lambda asked: "-".join(str(value) for value in asked.values()))
def test_the_same_bytes_however_much_is_held_and_in_however_many_parts(
    runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    spec = PairSpec(selector="all", name="it", **asked)
    whole, parts = runs
    made = written(whole, spec)
    assert made
    assert pair(whole, spec).did == "kept"
    monkeypatch.setattr(reader, "BATCH_ROWS", 20)
    monkeypatch.setattr(pair_step, "PROPOSALS", 30)
    for cores in (1, 3):
        monkeypatch.setattr(reader, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(pair_step, "usable_cores", lambda cores=cores: cores)
        assert written(parts, spec) == made


def test_rso_makes_four_disjoint_pairs_or_a_tournament_of_seven(tmp_path: Path) -> None:
    rows = [answer(f"prompt {p}", i, float(i)) for p in range(20) for i in range(16)]
    run = scored_run(tmp_path / "run", rows)
    select(run, SelectSpec(method="rso", k=8, name="rso"))
    for strategy, each in (("first-round", 4), ("tournament", 7)):
        made = pair(run, PairSpec(strategy=strategy, name=strategy))  # type: ignore[arg-type]
        assert (made.report.rows_in, made.report.rows_out) == (20 * each, 20 * each)
        frame = rows_of(run, strategy)
        assert frame.group_by("prompt_id").len()["len"].to_list() == [each] * 20
        assert (frame["chosen_score"] > frame["rejected_score"]).all()
        assert frame["scorer"].unique().to_list() == ["reward"]
    both = rows_of(run, "first-round")
    assert pl.concat([both["chosen_id"], both["rejected_id"].alias("chosen_id")]).is_unique().all()


def test_the_reference_need_not_be_selected_nor_scored(tmp_path: Path) -> None:
    rows = [
        answer("a", 0, 3.0), answer("a", 1, 1.0), answer("a", 2, 2.0),
        answer("a", 0, 2.5, sampler="human"),
        answer("b", 0, 1.0), answer("b", 1, 2.0), answer("b", 0, None, sampler="human"),
    ]  # fmt: skip
    run = scored_run(tmp_path / "run", rows)
    select(run, SelectSpec(method="top-k", k=2, name="two", sampler=("policy",)))
    asked: dict[str, Any] = {"strategy": "against-reference", "reference": "human", "selector": "two"}
    plain = pair(run, PairSpec(**asked, name="plain"))
    assert plain.report.dropped == {"no_score": 2}
    assert sorted(rows_of(run, "plain")["margin"]) == [0.5, 0.5]
    pair(run, PairSpec(**asked, trust_reference=True, name="spin"))
    frame = rows_of(run, "spin")
    human = {row["candidate_id"] for row in rows if row["sampler"] == "human"}
    assert frame.height == 4
    assert set(frame["chosen_id"]) == human
    assert frame["scorer"].unique().to_list() == ["human"]
    with pytest.raises(UsageError, match=r"no candidates by a sampler 'nobody'"):
        pair(run, PairSpec(**{**asked, "reference": "nobody"}))


def test_balance_by_source_and_by_sampler(tmp_path: Path) -> None:
    rows = [
        answer(f"prompt {p}", i, float(i) + (sampler == "hot") * (p < 3), sampler=sampler)
        for p in range(10)
        for sampler in ("policy", "hot")
        for i in range(2)
    ]
    run = scored_run(tmp_path / "run", rows)
    made = pair(run, PairSpec(selector="all", strategy="cross-sampler", balance="sampler", name="sampler"))
    assert made.report.dropped == {"tie": 7}
    keys = sorted({(row["prompt_id"], row["prompt"]) for row in rows}, key=lambda row: row[1])
    for name, some in (("films", keys[:3]), ("books", keys[3:]), ("made", [])):
        messages = [{"prompt_id": k, "messages": [{"role": "user", "content": t}], "split": "train"} for k, t in some]
        write(run, "prompts", name, messages)
    made = pair(run, PairSpec(selector="all", balance="source", name="source"))
    assert (made.report.rows_in, made.report.rows_out, made.report.dropped) == (10, 6, {"balance": 4})
    films = [prompt in {k for k, _ in keys[:3]} for prompt in rows_of(run, "source")["prompt_id"]]
    assert sum(films) == 3
    assert made.report.figures["prompts_with_pairs"] == 6


def compared(tmp_path: Path) -> Run:
    run = scored_run(tmp_path / "run", [answer("a", i, None, text=f"answer {i}") for i in range(3)])
    key = [ids.digest(["a", "policy", i]) for i in range(3)]
    said = [(0, 1, 1.0), (1, 0, 0.2), (1, 2, 0.5), (2, 0, 0.0)]
    rows = [
        {"prompt_id": ids.digest("a"), "first_id": key[i], "second_id": key[j], "probability": p} for i, j, p in said
    ]
    write(run, "comparisons", "people", rows)
    return run


def test_comparisons_and_kept_ties(tmp_path: Path) -> None:
    run = compared(tmp_path)
    dropped = pair(run, PairSpec(strategy="comparisons", name="strict"))
    assert (dropped.report.rows_in, dropped.report.rows_out, dropped.report.dropped) == (3, 2, {"tie": 1})
    assert rows_of(run, "strict")["probability"].to_list() == [1.0, 0.9]
    pair(run, PairSpec(strategy="comparisons", ties="keep", name="ties"))
    assert sorted(rows_of(run, "ties")["verdict"]) == ["chosen", "chosen", "tie"]
    assert rows_of(run, "ties")["scorer"].to_list() == ["people"] * 3
    out = tmp_path / "out"
    export(run, ExportSpec(pairing="ties"), out)
    shards = pl.concat(pl.read_parquet(file) for file in (out / "data").glob("*.parquet"))
    assert shards.height == 2
    said = pl.DataFrame(run.partition("comparisons", "people").read()).with_columns(probability=pl.lit(1.0))
    write(run, "comparisons", "people", said.to_dicts())
    assert pair(run, PairSpec(strategy="comparisons", ties="keep", name="ties")).did != "kept"
    assert rows_of(run, "ties")["verdict"].to_list() == ["chosen", "chosen", "tie"]


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    run = compared(tmp_path)
    for wrong in ({"selector": "all"}, {"scorer": "reward"}):
        with pytest.raises(UsageError, match="reads verdicts"):
            pair(run, PairSpec(strategy="comparisons", **wrong))
    for name in ("min_margin", "max_margin", "temperature"):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} applies to scores"):
            PairSpec.parse({"strategy": "comparisons", name: 2.0})
    with pytest.raises(UsageError, match="--top goes with --label-by top-bottom"):
        PairSpec.parse({"as": "unpaired", "top": 2})
    for table in ("unpaired", "groups", "demonstrations"):
        with pytest.raises(UsageError, match="--per-prompt goes with --as pairs"):
            PairSpec.parse({"as": table, "per_prompt": 2})
    with pytest.raises(NotReady, match="no selections yet"):
        pair(run, PairSpec())


def test_one_candidate_a_prompt_is_told(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", [answer("a", i, float(i)) for i in range(3)])
    select(run, SelectSpec(method="best-of-n", name="best"))
    with pytest.raises(InputError, match="keeps one candidate a prompt"):
        pair(run, PairSpec())
    assert not run.partitions("pairs") or not run.partition("pairs", "best").parts()
    pair(run, PairSpec(selector="all", name="it"))
    with pytest.raises(SpecConflict, match="min_margin"):
        pair(run, PairSpec(selector="all", name="it", min_margin=1.0))
