"""What rewards a response: one of rank's scorers, or several and the rule that makes one score of theirs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefdata.errors import UsageError
from prefdata.scorers.open import dated_scorer, is_pairwise, open_scorer, scorer_identity, scorer_outputs
from prefdata.scorers.protocol import Score, Scorer, ScoringItem
from prefdata.specs import RankSpec
from prefdata.specs.rank import CandidatesSpec
from prefdata.train.ppo.specs import PpoSpec

if TYPE_CHECKING:
    from prefdata.scorers.combination import Rule

Row = dict[str, Any]


def scorer_specs(spec: PpoSpec, began: str | None = None) -> dict[str, RankSpec]:
    """Return the scorers' settings by name, with the date that their chat templates read, where one reads the clock.

    Raises:
        UsageError: one compares responses, has several outputs, or is computed from scores; or `combine` is missing,
            not needed, or no rule of these scorers.
    """
    specs = spec.scorers
    for name, scorer in specs.items():
        if not isinstance(scorer, CandidatesSpec) or is_pairwise(scorer):
            raise UsageError(
                f"--reward {name}: name a scorer that scores single responses (reward_model, function, …)."
            )
        if scorer_outputs(scorer) != ("",):
            raise UsageError(f"--reward {name}: the scorer has several outputs. Name one of them with label=NAME.")
    if len(specs) > 1 and spec.combine is None:
        raise UsageError(f"--reward names several scorers ({', '.join(specs)}): say with --combine what the reward is.")
    reward_rule(spec, list(specs))
    return {name: dated_scorer(scorer, began) for name, scorer in specs.items()}


def reward_rule(spec: PpoSpec, names: Sequence[str]) -> Rule | None:
    """Return the rule that combines scores into the reward; None where there is one scorer, whose score it is.

    Raises:
        UsageError: it is no rule, or names a scorer that there is not.
    """
    if spec.combine is None:
        return None
    from prefdata.scorers.combination import parse_rule

    return parse_rule(spec.combine, names)


def rewards_identity(specs: Mapping[str, RankSpec]) -> dict[str, Any]:
    """Return what decides the scores: non-default settings, and ids of models and files in the place of paths."""
    return {
        name: {**spec.non_default_identity(spec.identity()), **scorer_identity(spec)} for name, spec in specs.items()
    }


class Rewarder:
    """Scores responses.

    Args:
        specs: the scorers by name.
        rule: makes the reward of their scores; None where there is one.
    """

    def __init__(self, specs: Mapping[str, RankSpec], rule: Rule | None = None) -> None:
        self._scorers: dict[str, Scorer] = {name: open_scorer(spec) for name, spec in specs.items()}
        self._rule = rule
        self.members = tuple(specs) if rule is not None else ()

    def score(self, items: Sequence[ScoringItem], prompts: Sequence[Row]) -> dict[str, dict[str, Score]]:
        """Score the items of these prompts' rows: by key, for each of `members`, and the reward under ""."""
        found = {
            name: {score.key: _finite(score) for score in scorer.score(items)} for name, scorer in self._scorers.items()
        }
        if self._rule is None:
            (only,) = found.values()
            return {"": only}
        return {**found, "": _combined(self._rule, found, items, prompts)}

    def close(self) -> None:
        """Give back the scorers' memory."""
        for scorer in self._scorers.values():
            scorer.close()


def _finite(score: Score) -> Score:
    if score.score is None or math.isfinite(score.score):
        return score
    return Score(score.key, None, score.reason or "nan", score.text_hash, score.details)


def _combined(
    rule: Rule, found: Mapping[str, Mapping[str, Score]], items: Sequence[ScoringItem], prompts: Sequence[Row]
) -> dict[str, Score]:
    import polars as pl

    from prefdata.scorers.combination import combine

    keys = [item.key for item in items]
    table = {name: [scores[key].score for key in keys] for name, scores in found.items()}
    ids = pl.Series([row["prompt_id"] for row in prompts], dtype=pl.String)
    tagged = pl.Series(["safety" in (row["tags"] or ()) for row in prompts], dtype=pl.Boolean)
    members = pl.DataFrame(table, schema=dict.fromkeys(table, pl.Float64))
    made = combine(rule, members, ids, safety_prompts=tagged if rule.kind == "gate" else None)
    return {
        key: Score(key, score, reason, None, {name: values[place] for name, values in table.items()})
        for place, (key, score, reason) in enumerate(zip(keys, made["score"], made["reason"], strict=True))
    }


def score_details(score: Score) -> str | None:
    """Return a score's details as JSON, as the table of scores has them."""
    return None if score.details is None else json.dumps(score.details, ensure_ascii=False)
