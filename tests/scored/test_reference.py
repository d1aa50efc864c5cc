"""select and pair on files against the same rules on rows that whole tables are joined to, filtered in plain Python.

The reference reads everything at once, joins by id, and applies each filter row by row; then the pure rule decides
about all prompts together. What select and pair store has to be the same, whatever the order of the files' rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from scored_runs import answer, scored_run, write

from prefdata.pairs import pair as pair_step
from prefdata.pairs.from_comparisons import mean_verdicts
from prefdata.pairs.pair import make_pairs, pair
from prefdata.scored import reader
from prefdata.selections.select import select, select_from
from prefdata.specs import FilterSpec, PairSpec, SelectSpec
from prefdata.storage.report import nonzero
from prefdata.storage.run import Run

Row = dict[str, Any]

CONDITIONS: dict[str, Callable[[Row], bool]] = {
    "score > 0": lambda row: row["score"] is not None and row["score"] > 0,
    "split = 'train' and sample_index < 3": lambda row: row["split"] == "train" and row["sample_index"] < 3,
    "candidates.status = 'said' and sampler = 'hot'": lambda row: row["sampler"] == "hot",
}
"""SQL on scores alone, on prompts too, and on candidates too; and the same in Python. NaN is above all numbers."""

SELECT: dict[str, Row] = {
    "best-of-n": {"method": "best-of-n"},
    "improve": {"method": "best-of-n", "improve": 0.3},
    "top-k": {"method": "top-k", "k": 3},
    "overall": {"method": "top-k-overall", "k": 9},
    "threshold": {"method": "threshold", "threshold": 0.5},
    "min-max": {"method": "threshold", "threshold": 0.5, "scale": "min-max"},
    "boltzmann": {"method": "boltzmann", "k": 3, "beta": 1.0},
    "rso": {"method": "rso", "k": 2},
    "algorithm1": {"method": "rso-algorithm1", "k": 2},
    "shuffled": {"method": "rso-algorithm1", "k": 3, "shuffle": True, "seed": 3},
    "diverse": {"method": "top-k", "k": 2, "diverse": 0.5},
    "latest": {"method": "top-k", "k": 2, "pool": "latest"},
    "latest-where": {"method": "top-k", "k": 2, "pool": "latest", "where": "score > 0"},
    "mix": {"method": "best-of-n", "pool": "mix", "quota": ("policy=2", "hot=1")},
    "sampler": {"method": "top-k", "k": 9, "sampler": ("hot",)},
    "refusals": {"method": "top-k", "k": 9, "refusals": "drop"},
    "chars": {"method": "top-k", "k": 9, "min_chars": 2, "max_chars": 12},
    "everything": {"method": "top-k", "k": 99, "truncated": "keep", "duplicates": "keep"},
    **{f"where-{i}": {"method": "top-k", "k": 9, "where": where} for i, where in enumerate(CONDITIONS)},
}

PAIR: dict[str, Row] = {
    "best-worst": {},
    "two": {"per_prompt": 2},
    "best-random": {"strategy": "best-random"},
    "random-labelled": {"strategy": "random-labelled", "per_prompt": 3},
    "first-round": {"strategy": "first-round"},
    "tournament": {"strategy": "tournament"},
    "adjacent": {"strategy": "adjacent", "min_margin": 0.3, "max_margin": 1.5},
    "all": {"strategy": "all", "max_per_candidate": 2, "max_pairs_per_prompt": 3},
    "top-bottom": {"strategy": "top-bottom", "top": 2, "bottom": 2, "truncated": "drop"},
    "length-matched": {"strategy": "length-matched", "length_tolerance": 0.9, "per_prompt": 2},
    "reference": {"strategy": "against-reference", "reference": "hot"},
    "spin": {"strategy": "against-reference", "reference": "hot", "trust_reference": True, "sampler": ("policy",)},
    "cross-sampler": {"strategy": "cross-sampler", "refusals": "drop"},
    "where": {"where": "score > 0", "max_chars": 40},
    "comparisons": {"strategy": "comparisons", "ties": "keep"},
    "judged": {"strategy": "comparisons", "where": "split = 'train' and sample_index < 3"},
}


def rows() -> list[Row]:
    """Nine prompts with up to six candidates of each of two samplers: ties, copies, refusals, truncated, no scores."""
    dice = random.Random(7)
    texts = ["same text", " same  text ", "", "I can't help with that.", "Sure. I can't"]
    return [
        answer(
            f"prompt {p}", i,
            dice.choice([None, float("nan"), float("inf"), 0.5, 0.5, *(round(dice.gauss(0, 1), 1) for _ in range(12))]),
            sampler=sampler, round=round_, text=dice.choice([*texts, *(f"{p} {sampler} {i}" + "x" * p,) * 9]),
            finish_reason=dice.choice(["stop", "stop", "stop", "length"]),
        )
        for round_, sampler in enumerate(("policy", "hot"))
        for p in range(9)
        for i in range(dice.randint(1, 6))
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["by prompt", "shuffled"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run with the rows of each prompt together, and with all of them shuffled in many parts."""
    found, dice = rows(), random.Random(1)
    found = (
        sorted(found, key=lambda row: row["prompt"]) if request.param == "by prompt" else dice.sample(found, len(found))
    )
    run = scored_run(tmp_path_factory.mktemp("run") / "run", found, parts=2 if request.param == "by prompt" else 30)
    prompts = pl.DataFrame(run.partition("prompts", "made").read()).sort("prompt_id").to_dicts()
    write(run, "prompts", "made", [{**row, "split": ("train", "test")[i % 3 == 0]} for i, row in enumerate(prompts)])
    by_prompt: dict[str, list[str]] = {}
    for row in sorted(found, key=lambda row: row["candidate_id"]):
        by_prompt.setdefault(row["prompt_id"], []).append(row["candidate_id"])
    dice = random.Random(2)
    games = [
        {"prompt_id": prompt, "first_id": a, "second_id": b, "probability": dice.choice([None, 0.0, 0.3, 0.5, 1.0])}
        for prompt, some in sorted(by_prompt.items())
        for a, b in [dice.sample(some, 2) for _ in range(3 if len(some) > 1 else 0)]
    ]
    write(run, "comparisons", "people", list({(one["first_id"], one["second_id"]): one for one in games}.values()))
    select(run, SelectSpec(method="top-k", k=4, truncated="keep", name="some"))
    return run


def table(run: Run, name: str) -> pl.DataFrame:
    """A whole table with the names of its partitions, one row a key."""
    frames = [
        pl.DataFrame(one.read()).with_columns(pl.lit(one.name).alias(one.table.partition)) for one in run.all(name)
    ]
    return pl.concat(frames)


def reference(run: Run, spec: FilterSpec, source: str, extra: tuple[str, ...] = ()) -> pl.DataFrame:
    """What the reader should give, as one frame."""
    candidates = table(run, "candidates").join(table(run, "prompts").select("prompt_id", "split"), on="prompt_id")
    scores = dict(table(run, "scores").select("candidate_id", "score").iter_rows())
    draws: dict[str, int | None] = {}
    if source == "scores":
        named = {*scores}
    elif source == "selections":
        draws = dict(pl.DataFrame(run.partition(source, "some").read(["candidate_id", "draws"])).iter_rows())
        named = {*draws}
    else:
        scores, games = {}, table(run, source)
        named = {*games["first_id"], *games["second_id"]}
    found = []
    for row in candidates.iter_rows(named=True):
        row |= {"score": scores.get(row["candidate_id"]), "draws": draws.get(row["candidate_id"])}
        wanted = not spec.sampler or row["sampler"] in {*spec.sampler, *extra}
        if wanted and (row["candidate_id"] in named or row["sampler"] in extra):
            needs_score = source != "comparisons" and row["sampler"] not in extra
            found.append({**row, "excluded": excluded(row, spec, needs_score)})
    return pl.DataFrame(found, schema_overrides={"excluded": pl.String, "score": pl.Float64, "draws": pl.Int32})


def excluded(row: Row, spec: FilterSpec, needs_score: bool) -> str | None:
    if needs_score and (row["score"] is None or not abs(row["score"]) <= 1e100):
        return "no_score"
    if spec.where is not None and not CONDITIONS[spec.where](row):
        return "where"
    if spec.refusals == "drop" and "i can't" in row["text"].strip()[:120].lower():
        return "refusal"
    if len(row["text"].strip()) < spec.min_chars:
        return "too_short"
    return "too_long" if spec.max_chars is not None and len(row["text"].strip()) > spec.max_chars else None


def comparable(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    return frame.sort(key).drop("scorer", strict=False)


def test_what_is_selected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH_ROWS", 7)
    for name, asked in SELECT.items():
        spec = SelectSpec(name=name, **asked)
        frame = reference(run, spec, "scores")
        wanted, account = select_from(frame, spec)
        if spec.method == "top-k-overall":
            wanted = wanted.sort("score", "rank", "candidate_id", descending=[True, False, False]).head(spec.k)
        report = select(run, spec, replace=True).report
        made = pl.DataFrame(run.partition("selections", name).read())
        assert comparable(made, "candidate_id").equals(comparable(wanted, "candidate_id")), name
        dropped = {**account.dropped, "not_selected": frame.height - wanted.height - sum(account.dropped.values())}
        dropped["not_selected"] += account.dropped["not_selected"]
        assert (report.rows_in, report.dropped) == (frame.height, nonzero(dropped)), name


def test_what_is_paired(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH_ROWS", 7)
    monkeypatch.setattr(pair_step, "PROPOSALS", 7)
    for name, asked in PAIR.items():
        by_verdicts = asked.get("strategy") == "comparisons"
        judged = mean_verdicts(table(run, "comparisons")) if by_verdicts else None
        for source, selector in {"comparisons": None}.items() if by_verdicts else SOURCES.items():
            spec = PairSpec(name=name, selector=selector, **asked)
            extra = (spec.reference,) if spec.reference else ()
            wanted, account = make_pairs(reference(run, spec, source, extra), spec, judged)
            report = pair(run, spec, replace=True).report
            made = pl.DataFrame(run.partition("pairs", name).read()).drop("details")
            assert comparable(made, "pair_id").equals(comparable(wanted, "pair_id")), (name, source)
            assert (report.rows_out, report.dropped) == (wanted.height, nonzero(account.dropped)), (name, source)


SOURCES = {"scores": "all", "selections": "some"}
