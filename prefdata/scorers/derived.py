"""Scores made from scores or from comparisons: combined, aggregated, calibrated. No model is run."""

from __future__ import annotations

import json
from functools import partial as bound
from typing import Any

import polars as pl

from prefdata.errors import InputError
from prefdata.scorers.combination import Rule, combine, function_file, parse_rule
from prefdata.scorers.protocol import Derivation
from prefdata.scorers.rules.function import file_identity
from prefdata.specs.rank import AggregateSpec, CalibrateSpec, CombineSpec
from prefdata.stats.calibration import (
    correlation,
    figures,
    fit_temperature,
    length_penalty,
    lowess_bias,
    mean_bias,
    pair_window,
)
from prefdata.stats.ratings import aggregate
from prefdata.stats.win_counts import contradictions, league
from prefdata.storage.queries import candidate_files, read_candidates, read_preferences, read_prompts
from prefdata.storage.run import Run
from prefdata.storage.schemas import SCORES, rows_hash

BOOTSTRAP = 200
"""Resamples for the intervals of Bradley-Terry scores."""

_CANDIDATE = ["candidate_id", "prompt_id", *SCORES.copied]
_GAMES = ["prompt_id", "first_id", "second_id", "order", "annotator", "probability"]

Derived = tuple[pl.DataFrame, dict[str, Any]]
"""Rows of scores, and figures for the Report."""


def combined(spec: CombineSpec, run: Run, *, partial: bool = False) -> Derivation:
    """Combine several scorers into one by the rule `spec.combine`.

    A candidate that one of them has no score for has none here, and the reason names the scorer that is missing.

    Raises:
        NotReady: there are no scores, or one of the scorers is unfinished and `partial` was not asked for.
        UsageError: the rule cannot be read, or names a scorer that is not in the run.
    """
    run.all("scores", partial=True)
    name = spec.name or "combined"
    known = [partition.name for partition in run.partitions("scores") if partition.name != name]
    rule = parse_rule(spec.combine, known)
    members = {member: scores_of(run, member, partial=partial) for member in rule.members}
    parents = {f"scores/{member}": _content(rows) for member, rows in members.items()}
    file = function_file(rule)
    resolved = {} if file is None else {"function": file_identity(file)}
    return Derivation(name, parents, bound(_combine, run, spec, rule, members), resolved, _seen(run, *rule.members))


def _combine(run: Run, spec: CombineSpec, rule: Rule, members: dict[str, pl.DataFrame]) -> Derived:
    joined = _joined(members)
    made = combine(
        rule,
        joined.select(rule.members),
        joined["prompt_id"],
        normalise=spec.normalize,
        safety_prompts=_safety(run, joined["prompt_id"]) if rule.kind == "gate" else None,
    )
    return joined.select(*_CANDIDATE, "text_hash").hstack(made), {}


def aggregated(spec: AggregateSpec, run: Run, *, partial: bool = False) -> Derivation:
    """Compute scores from the comparisons of some judges.

    Raises:
        NotReady: there are no comparisons, or a judge's are unfinished and `partial` was not asked for.
        UsageError: there is no such judge.
    """
    judges = [run.only("comparisons", judge, partial=partial) for judge in spec.comparisons]
    frames = [pl.from_arrow(judge.read(_GAMES)) for judge in judges]
    games = pl.concat([frame for frame in frames if isinstance(frame, pl.DataFrame)])
    keyed = games.with_columns(key=pl.concat_str("first_id", "second_id", "order", "annotator", separator="/"))
    parents = {"comparisons": rows_hash(keyed.select("key", "probability").to_arrow(), "key")}
    return Derivation(
        f"{'-'.join(spec.comparisons)}-{spec.aggregate}",
        parents,
        bound(_aggregate, run, spec, games),
        seen=candidate_files(run),
    )


def _aggregate(run: Run, spec: AggregateSpec, games: pl.DataFrame) -> Derived:
    intervals = BOOTSTRAP if spec.aggregate == "bradley-terry" else 0
    made = aggregate(games, spec.aggregate, prior=spec.prior, bootstrap=intervals, seed=spec.seed)
    details = [
        json.dumps({name: value for name, value in row.items() if value is not None})
        for row in made.select("games", "low", "high").iter_rows(named=True)
    ]
    rows = made.select("candidate_id", "score", "reason", details=pl.Series(details, dtype=pl.String))
    return _with_candidates(run, rows), {"comparisons": games.height, **_contradictions(games)}


def calibrated(spec: CalibrateSpec, run: Run, *, partial: bool = False) -> Derivation:
    """Correct a scorer's scores for length, and by a temperature.

    The temperature is fitted on the pairs of `spec.labelled`, whose labels are taken to be correct (people's, another
    scorer's); the report has the figures on them before and after.

    Raises:
        NotReady: there are no such scores, or no such pairs.
    """
    rows = scores_of(run, spec.calibrate, partial=partial)
    rows = rows.with_columns(length=pl.col("chars").cast(pl.Float64))
    ids = ["pair_id", "chosen_id", "rejected_id"]
    pairs = None if spec.labelled is None else read_preferences(run.only("pairs", spec.labelled), ids)
    parents = {f"scores/{spec.calibrate}": _content(rows)}
    if pairs is not None:
        parents[f"pairs/{spec.labelled}"] = rows_hash(pairs.to_arrow(), "pair_id")
    compute = bound(_calibrate, spec, rows, pairs)
    return Derivation(f"{spec.calibrate}-calibrated", parents, compute, seen=_seen(run, spec.calibrate))


def _calibrate(spec: CalibrateSpec, rows: pl.DataFrame, pairs: pl.DataFrame | None) -> Derived:
    made = corrected(rows, pairs, spec)
    before, after = _on_pairs(rows, pairs), _on_pairs(made, pairs)
    shown = {f"{name} {when}": v for when, part in (("before", before), ("after", after)) for name, v in part.items()}
    return made.drop("length"), shown


def corrected(rows: pl.DataFrame, pairs: pl.DataFrame | None, spec: CalibrateSpec) -> pl.DataFrame:
    """Scores without what length explains (2409.17407), and divided by the fitted temperature.

    `rows` has score and length (characters) among its columns, `pairs` chosen_id and rejected_id.
    """
    usable = rows.filter(pl.col("score").is_not_null() & pl.col("length").is_not_null())
    scores, lengths = usable["score"].to_numpy(), usable["length"].to_numpy()
    if spec.length == "penalty":
        scores = length_penalty(scores, lengths, spec.length_weight)
    elif spec.length == "rc-lwr" and len(scores):
        scores = scores - lowess_bias(scores, lengths, lengths)
    elif spec.length == "rc-mean" and len(scores):
        window = pair_window(lengths, usable["prompt_id"])
        scores = scores - mean_bias(scores, lengths, lengths, window=window)
    made = usable.select("candidate_id", new=pl.Series("new", scores, dtype=pl.Float64).fill_nan(None))
    joined = rows.join(made, on="candidate_id", how="left", maintain_order="left")
    few = pl.col("score").is_not_null() & pl.col("new").is_null()
    reason = pl.when(few).then(pl.lit("few_of_its_length")).otherwise(pl.col("reason"))
    corrected_rows = joined.with_columns(score=pl.col("new"), reason=reason).drop("new")
    if pairs is None:
        return corrected_rows
    margins = _margins(corrected_rows, pairs)
    fitted = fit_temperature((margins["chosen"] - margins["rejected"]).to_numpy())
    return corrected_rows.with_columns(pl.col("score") / fitted.value)


def _margins(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs whose two responses both have a score: chosen, rejected, and their lengths."""
    known = rows.filter(pl.col("score").is_not_null()).select("candidate_id", "score", "length")
    for side in ("chosen", "rejected"):
        named = known.rename({"score": side, "length": f"{side}_length"})
        pairs = pairs.join(named, left_on=f"{side}_id", right_on="candidate_id")
    return pairs


def _on_pairs(rows: pl.DataFrame, pairs: pl.DataFrame | None) -> dict[str, Any]:
    known = rows.filter(pl.col("score").is_not_null())
    correlations: dict[str, Any] = {
        "length correlation": correlation(known["score"].to_numpy(), known["length"].to_numpy())
    }
    if pairs is None or (both := _margins(rows, pairs)).height == 0:
        return correlations
    chosen, rejected = both["chosen"].to_numpy(), both["rejected"].to_numpy()
    found = figures(chosen, rejected, both["chosen_length"].to_numpy(), both["rejected_length"].to_numpy())
    return {"accuracy": found.accuracy, "ece": found.ece, "log loss": found.log_loss, **correlations}


def _contradictions(games: pl.DataFrame) -> dict[str, Any]:
    figures = contradictions(league(games))
    return {name.replace("_", " "): value for name, value in figures.items() if value is not None}


def _seen(run: Run, *scorers: str) -> dict[str, str]:
    """Return the files of candidates for which all of some scorers are finished; nothing where they differ."""
    each = [success.seen if (success := run.partition("scores", one).success()) else {} for one in scorers]
    return each[0] if all(one == each[0] for one in each) else {}


def _content(rows: pl.DataFrame) -> str:
    return rows_hash(rows.select("candidate_id", "score").to_arrow(), "candidate_id")


def scores_of(run: Run, scorer: str, *, partial: bool = False) -> pl.DataFrame:
    """Return the scores of one scorer.

    Raises:
        NotReady, UsageError: as `Run.only`.
    """
    rows = pl.from_arrow(
        run.only("scores", scorer, partial=partial).read([*_CANDIDATE, "score", "reason", "text_hash"])
    )
    assert isinstance(rows, pl.DataFrame)
    return rows


def _joined(members: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Return a row for each candidate that one of the members scored, with a column of scores for each member."""
    every = pl.concat([rows.select(*_CANDIDATE, "text_hash") for rows in members.values()])
    joined = every.sort("candidate_id", "text_hash", nulls_last=True).unique(
        "candidate_id", keep="first", maintain_order=True
    )
    for name, rows in members.items():
        joined = joined.join(rows.select("candidate_id", pl.col("score").alias(name)), on="candidate_id", how="left")
    return joined.sort("prompt_id", "sample_index", "candidate_id")


def _with_candidates(run: Run, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of scores with what they repeat of their candidates.

    Raises:
        InputError: the run does not hold one of them.
    """
    candidates = read_candidates(run, [name for name in _CANDIDATE if name != "sampler"])
    joined = rows.join(candidates, on="candidate_id", how="left", maintain_order="left")
    if lost := joined.filter(pl.col("sampler").is_null())["candidate_id"].to_list():
        raise InputError(
            f"the comparisons are of {len(lost)} candidates that are not in {run} (first: {lost[0]}). "
            "Compare those that are there, or ingest the candidates again."
        )
    return joined.sort("prompt_id", "sample_index", "candidate_id")


def _safety(run: Run, prompts: pl.Series) -> pl.Series:
    tagged = read_prompts(run, partial=True).select("prompt_id", safety=pl.col("tags").list.contains("safety"))
    return pl.DataFrame({"prompt_id": prompts}).join(tagged, on="prompt_id", how="left", maintain_order="left")[
        "safety"
    ]
