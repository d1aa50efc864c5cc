"""eval policies: samplers and selections side by side, under one scorer or several.

A policy is a sampler (all its candidates) or a selection (the first it keeps for each prompt). The win rate against the
baseline is, for each prompt, the share of (policy draw, baseline draw) in which the policy's score is higher, ties
counting one half; then the mean over the prompts that both answered, with a bootstrap interval over prompts.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.explore.bootstrap import interval
from prefdata.store import Run
from prefdata.views import read_candidates, read_prompts


def compare(run: Run, scorers: list[str], policies: list[str], baseline: str, split: str = "test") -> pl.DataFrame:
    """One row a policy: policy, prompts, mean_<scorer> for each scorer, win_rate, low, high, mean_tokens.

    `win_rate` (and its 95% interval `low`, `high`) is under the first scorer, against `baseline`; null for the
    baseline itself.

    Raises:
        NotReady, UsageError: a scorer or a policy is not there.
        InputError: a policy and the baseline share no scored prompt.
    """
    answers = _answers(run, scorers, split)
    draws = {name: _draws(run, answers, name) for name in dict.fromkeys([baseline, *policies])}
    rows = []
    for name, drawn in draws.items():
        means = {f"mean_{scorer}": drawn[scorer].mean() for scorer in scorers}
        rate = (None, None, None) if name == baseline else _beats(name, drawn, draws[baseline], scorers[0])
        rows.append(
            {
                "policy": name,
                "prompts": drawn["prompt_id"].n_unique(),
                **means,
                **dict(zip(("win_rate", "low", "high"), rate, strict=True)),
                "mean_tokens": drawn["completion_tokens"].mean(),
            }
        )
    return pl.DataFrame(rows)


def win_rates(policy: pl.DataFrame, baseline: pl.DataFrame, scorer: str) -> NDArray[np.float64]:
    """Each shared prompt's win rate of `policy` over `baseline`, shape (prompts,)."""
    drawn = policy.select("prompt_id", pl.col(scorer).alias("a")).drop_nulls()
    other = baseline.select("prompt_id", pl.col(scorer).alias("b")).drop_nulls()
    both = drawn.join(other, on="prompt_id")
    wins = (pl.col("a") > pl.col("b")).cast(pl.Float64) + 0.5 * (pl.col("a") == pl.col("b")).cast(pl.Float64)
    return both.group_by("prompt_id").agg(wins.mean().alias("rate")).sort("prompt_id")["rate"].to_numpy()


def _beats(name: str, drawn: pl.DataFrame, baseline: pl.DataFrame, scorer: str) -> tuple[float, float, float]:
    rates = win_rates(drawn, baseline, scorer)
    if rates.size == 0:
        raise InputError(f"{name} and the baseline have no prompt that {scorer} scored for both. Sample and rank both.")
    return float(rates.mean()), *interval(rates)


def _answers(run: Run, scorers: list[str], split: str) -> pl.DataFrame:
    prompts = read_prompts(run, split).select("prompt_id")
    answers = read_candidates(run, ["candidate_id", "prompt_id", "completion_tokens"], of_each=True)
    answers = answers.join(prompts, on="prompt_id", how="semi")
    for scorer in scorers:
        scores = pl.from_arrow(run.only("scores", scorer).read(["candidate_id", "score"]))
        assert isinstance(scores, pl.DataFrame)
        answers = answers.join(scores.rename({"score": scorer}), on="candidate_id", how="left")
    return answers


def _draws(run: Run, answers: pl.DataFrame, policy: str) -> pl.DataFrame:
    samplers = {partition.name for partition in run.partitions("candidates")}
    selections = {partition.name for partition in run.partitions("selections")}
    if policy in samplers:
        return answers.filter(pl.col("sampler") == policy)
    if policy not in selections:
        raise UsageError(f"{run} has no sampler or selection {policy!r}.{did_you_mean(policy, samplers | selections)}")
    kept = pl.from_arrow(run.only("selections", policy).read(["candidate_id", "rank"]))
    assert isinstance(kept, pl.DataFrame)
    drawn = answers.join(kept.filter(pl.col("rank") == 1), on="candidate_id", how="semi")
    return drawn.unique("candidate_id", keep="first", maintain_order=True)
