"""eval policies: compare samplers and selections under one or several scorers.

A policy is a sampler (all its responses) or a selection (the first response that it keeps for each prompt). The win
rate against the baseline is the mean, over prompts, of the share of pairs (policy's response, baseline's response) in
which the policy's scores higher, a tie counting one half; its interval is by bootstrap over prompts.

A selected response was chosen among several samples, and would be compared with itself among them. So it is compared
only with samples that it was not chosen from:

- fresh ones, where the other side has any;
- else each sample left out in turn, against the best of the others. That is the win rate of the best of n - 1 over one
  more sample, (n - 1) / n for continuous iid scores. It needs a selection by the highest score (best-of-n, top-k).

Where neither is possible there is no win rate, and a note says why.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.scored.filters import is_valid_score
from prefdata.specs import SelectSpec
from prefdata.stats.bootstrap import bootstrap_interval
from prefdata.storage.queries import read_candidates, read_prompts
from prefdata.storage.run import Run

_ORDER = ["sample_index", "candidate_id"]
"""The order of generation: of equal scores the earlier response is the best."""

_BEST_FIRST = ("best-of-n", "top-k")
_POOL_IS_KNOWN = {"method", "scorer", "sampler", "k", "seed", "truncated", "duplicates"}
"""Settings with which candidates and scores alone determine what a selection could choose."""


@dataclass(frozen=True)
class Policy:
    """A policy's responses, and what they were chosen from.

    Attributes:
        name: its sampler or selection.
        responses: prompt_id, candidate_id of each response; at most one per prompt for a selection.
        drawn: of a selection, the samples that it was chosen from (prompt_id, candidate_id); None for a sampler.
        ranked: those of them that could be chosen, the best first; None where the responses are not the best of them.
        why: why there is no `ranked`.
        scorer: of a selection, the scorer that it was made by.
    """

    name: str
    responses: pl.DataFrame
    drawn: pl.DataFrame | None = None
    ranked: pl.DataFrame | None = None
    why: str = ""
    scorer: str | None = None


@dataclass(frozen=True)
class Meetings:
    """The pairs of responses that are compared: prompt_id, mine, other (candidate ids), and how they are compared."""

    pairs: pl.DataFrame
    compared_as: str | None = None


def compare(run: Run, scorers: list[str], policies: list[str], baseline: str, split: str = "test") -> pl.DataFrame:
    """Return one row per policy, the baseline first.

    Columns: policy, prompts, mean_<scorer> for each scorer, win_rate, low, high, mean_tokens, compared_as, note.
    `win_rate` and its 95% interval are under the first scorer, against `baseline`; null for the baseline itself.
    `compared_as` says that the win rate is of the best of fewer samples; `note` why there is none, or what it means.
    All figures are over the same prompts: those for which every policy has a scored response, and a pair to compare.

    Raises:
        NotReady, UsageError: a scorer or a policy does not exist.
        InputError: no prompt is left.
    """
    answers = _answers(run, scorers, split)
    sides = {name: _policy(run, answers, name) for name in dict.fromkeys([baseline, *policies])}
    values = {name: _by_prompt(side, answers, scorers) for name, side in sides.items()}
    met = {name: meetings(side, sides[baseline]) for name, side in sides.items() if name != baseline}
    rates = {name: win_rates(found.pairs, answers, scorers[0]) for name, found in met.items() if found is not None}
    prompts = _common([*values.values(), *rates.values()])
    if prompts.is_empty():
        names = ", ".join(sides)
        raise InputError(f"{names} have no prompt that all have responses to, scored by {', '.join(scorers)}.")
    rows = []
    for name, table in values.items():
        means = table.join(prompts, on="prompt_id", how="semi")
        found = met.get(name)
        rows.append(
            {
                "policy": name,
                "prompts": prompts.height,
                **{f"mean_{scorer}": means[scorer].mean() for scorer in scorers},
                **_rate(rates.get(name), prompts),
                "mean_tokens": means["completion_tokens"].mean(),
                "compared_as": found and found.compared_as,
                "note": None if name == baseline else _note(found, sides[name], sides[baseline], scorers[0]),
            }
        )
    return pl.DataFrame(rows, schema_overrides={"compared_as": pl.String, "note": pl.String, "win_rate": pl.Float64})


def meetings(policy: Policy, baseline: Policy) -> Meetings | None:
    """Find the pairs of responses that may be compared; None where there are none."""
    found = [Meetings(_fresh(policy, baseline))]
    if policy.ranked is not None and baseline.drawn is None:
        found.append(_left_out(policy, baseline))
    if baseline.ranked is not None and policy.drawn is None:
        turned = _left_out(baseline, policy)
        pairs = turned.pairs.rename({"mine": "other", "other": "mine"})
        found.append(Meetings(pairs, f"against {turned.compared_as}"))
    best = max(found, key=lambda one: one.pairs["prompt_id"].n_unique())  # the first of equals: fresh samples
    return best if best.pairs.height else None


def win_rates(pairs: pl.DataFrame, answers: pl.DataFrame, scorer: str) -> pl.DataFrame:
    """Return each prompt's win rate, as prompt_id and rate: the share of its scored pairs that `mine` wins."""
    score = answers.select("candidate_id", pl.col(scorer)).unique("candidate_id").drop_nulls()
    mine = pairs.join(score.rename({"candidate_id": "mine", scorer: "a"}), on="mine")
    both = mine.join(score.rename({"candidate_id": "other", scorer: "b"}), on="other")
    wins = (pl.col("a") > pl.col("b")).cast(pl.Float64) + 0.5 * (pl.col("a") == pl.col("b")).cast(pl.Float64)
    return both.group_by("prompt_id").agg(rate=wins.mean()).sort("prompt_id")


def _fresh(policy: Policy, baseline: Policy) -> pl.DataFrame:
    """Every pair of which neither response was chosen from samples that include the other."""
    mine, other = (side.responses.select("prompt_id", "candidate_id") for side in (policy, baseline))
    if policy.drawn is not None:
        other = other.join(policy.drawn, on="candidate_id", how="anti")
    if baseline.drawn is not None:
        mine = mine.join(baseline.drawn, on="candidate_id", how="anti")
    pairs = mine.rename({"candidate_id": "mine"}).join(other.rename({"candidate_id": "other"}), on="prompt_id")
    return pairs.filter(pl.col("mine") != pl.col("other"))


def _left_out(selection: Policy, sampler: Policy) -> Meetings:
    """Each sample of a sampler, and the best of the others that the selection was chosen from."""
    assert selection.ranked is not None
    assert selection.drawn is not None
    ids = pl.col("candidate_id")
    best = selection.ranked.group_by("prompt_id", maintain_order=True).agg(
        first=ids.first(), second=ids.get(1, null_on_oob=True)
    )
    best = best.join(selection.responses, on="prompt_id", how="semi")
    pairs = sampler.responses.rename({"candidate_id": "other"}).join(best, on="prompt_id")
    others = pl.when(pl.col("other") == pl.col("first")).then("second").otherwise("first")
    pairs = pairs.select("prompt_id", "other", mine=others).drop_nulls()
    sizes = selection.drawn.group_by("prompt_id").len().join(pairs, on="prompt_id", how="semi")["len"].unique().sort()
    names = [f"best-of-{size - 1}" for size in sizes]
    return Meetings(pairs, " to ".join(dict.fromkeys([*names[:1], *names[-1:]])))


def _rate(rates: pl.DataFrame | None, prompts: pl.DataFrame) -> dict[str, float | None]:
    if rates is None:
        return dict.fromkeys(("win_rate", "low", "high"))
    shared = rates.join(prompts, on="prompt_id", how="semi")["rate"].to_numpy()
    low, high = bootstrap_interval(shared)
    return {"win_rate": float(shared.mean()), "low": low, "high": high}


def _note(found: Meetings | None, policy: Policy, baseline: Policy, scorer: str) -> str | None:
    if found is None:
        why = "; ".join(side.why for side in (policy, baseline) if side.why) or "both are selections"
        return (
            f"no win rate: {policy.name} and {baseline.name} are of the same samples ({why}). Sample fresh ones under "
            f"another name and with another seed, rank them by {scorer}, and compare with those."
        )
    if found.compared_as and scorer in (policy.scorer, baseline.scorer):
        return f"{scorer} made the selection: by it, the best of n - 1 beats one more sample in (n - 1) / n of cases."
    return None


def _common(tables: list[pl.DataFrame]) -> pl.DataFrame:
    prompts = tables[0].select("prompt_id")
    for table in tables[1:]:
        prompts = prompts.join(table, on="prompt_id", how="semi")
    return prompts


def _by_prompt(policy: Policy, answers: pl.DataFrame, scorers: list[str]) -> pl.DataFrame:
    """Return the means of each prompt's responses, for the prompts that every scorer scored."""
    rows = answers.unique("candidate_id").join(policy.responses, on="candidate_id", how="semi")
    means = rows.group_by("prompt_id").agg(pl.col(*scorers, "completion_tokens").mean())
    return means.drop_nulls(scorers).sort("prompt_id")


def _answers(run: Run, scorers: list[str], split: str) -> pl.DataFrame:
    prompts = read_prompts(run, split).select("prompt_id")
    columns = ["candidate_id", "prompt_id", "completion_tokens", "finish_reason", "round", "text_key", "sample_index"]
    answers = read_candidates(run, columns, of_each=True).join(prompts, on="prompt_id", how="semi")
    for scorer in scorers:
        answers = answers.join(_scores(run, scorer, scorer), on="candidate_id", how="left")
    return answers


def _scores(run: Run, scorer: str, column: str) -> pl.DataFrame:
    scores = pl.from_arrow(run.only("scores", scorer).read(["candidate_id", "score"]))
    assert isinstance(scores, pl.DataFrame)
    return scores.filter(is_valid_score("score")).rename({"score": column})


def _policy(run: Run, answers: pl.DataFrame, name: str) -> Policy:
    samplers = {partition.name for partition in run.partitions("candidates")}
    selections = {partition.name for partition in run.partitions("selections")}
    ids = ["prompt_id", "candidate_id"]
    if name in samplers:
        return Policy(name, answers.filter(pl.col("sampler") == name).select(ids))
    if name not in selections:
        raise UsageError(f"{run} has no sampler or selection {name!r}.{did_you_mean(name, samplers | selections)}")
    return _selection(run, answers, name)


def _selection(run: Run, answers: pl.DataFrame, name: str) -> Policy:
    partition = run.only("selections", name)
    lineage, success = partition.lineage(), partition.success()
    assert lineage is not None
    assert success is not None
    spec, scorer = SelectSpec.from_identity(lineage.spec), str(lineage.spec["scorer"])
    kept = pl.from_arrow(partition.read(["prompt_id", "candidate_id", "rank", "score"]))
    assert isinstance(kept, pl.DataFrame)
    first = kept.filter(pl.col("rank") == 1).join(answers, on="candidate_id", how="semi")
    scored = answers.join(_scores(run, scorer, "by"), on="candidate_id")
    then = {one.removeprefix("candidates/") for one in success.seen if one.startswith("candidates/")}
    samplers = {one for one in scored["sampler"].unique() if not spec.sampler or one in spec.sampler}
    drawn = answers.filter(pl.col("sampler").is_in(samplers & then or samplers))  # not from samplers that came later
    ranked = _best_first(scored.join(drawn, on="candidate_id", how="semi").unique("candidate_id"), spec)
    why = _not_the_best(spec, ranked, first)
    ids = ["prompt_id", "candidate_id"]
    return Policy(name, first.select(ids), drawn.select(ids).unique(), None if why else ranked.select(ids), why, scorer)


def _best_first(rows: pl.DataFrame, spec: SelectSpec) -> pl.DataFrame:
    """Return the samples that a selection could choose, by prompt, the highest score first, as `select` orders them."""
    if spec.truncated == "drop":
        rows = rows.filter(pl.col("finish_reason").ne_missing("length"))
    if spec.duplicates == "collapse":  # a duplicate text has the score of the first
        earliest = pl.col("by").sort_by("round", *_ORDER).first()
        rows = rows.with_columns(by=earliest.over("prompt_id", "text_key"))
    return rows.sort("prompt_id", "by", *_ORDER, descending=[False, True, False, False])


def _not_the_best(spec: SelectSpec, ranked: pl.DataFrame, first: pl.DataFrame) -> str:
    """Why the first responses of a selection are not the best of its samples; "" where they are."""
    if spec.method not in _BEST_FIRST:
        return f"{spec.method} does not choose the best one"
    if more := set(SelectSpec.non_default_identity(spec.identity())) - _POOL_IS_KNOWN:
        return f"chosen with --{sorted(more)[0].replace('_', '-')}"
    ranked = ranked.with_columns(best=pl.col("by").max().over("prompt_id"))
    mine = first.join(ranked, on="candidate_id", how="left")
    same = mine.select((pl.col("by") == pl.col("best")) & (pl.col("score") == pl.col("best"))).to_series()
    return "" if same.fill_null(False).all() else "selected before the samples or scores changed; select again"
