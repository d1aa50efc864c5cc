"""Combine several scores: weighted sum, worst case, uncertainty-weighted, Llama 2's gate, lexicographic, a function.

A rule is written as a person would type it:

    rule     = sum | call
    sum      = [number "*"] name { ("+" | "-") [number "*"] name }
    call     = (mean | min | uwo | gate | lexicographic | FILE.py:NAME) "(" argument { ("," | ";") argument } ")"
    argument = name | name "~" tolerance | setting "=" value

    0.7*helpful + 0.3*safe      mean(a, b, c)        min(a, b)        uwo(a, b, c; lambda=0.5)
    gate(safety=s, helpful=h; threshold=0.15)        lexicographic(safe~0.1; helpful)        mix.py:mix(a, b)

A name may hold hyphens (`best-of-16`), so a minus between names has blanks around it. A candidate that lacks a member
gets no score and the reason `missing_NAME`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.errors import UsageError, did_you_mean
from prefdata.scorers.protocol import ScoringItem
from prefdata.scorers.rules.function import LONGEST_CALL
from prefdata.scorers.rules.subprocess_pool import SubprocessPool

Array = NDArray[np.float64]

NORMALISATIONS = ("none", "z", "z-prompt", "rank", "quantile")
"""Normalisations of each member; see `normalised`."""

_KINDS = ("mean", "min", "uwo", "gate", "lexicographic")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"\s*(?P<sign>[+-])?\s*(?:(?P<weight>{_NUMBER})\s*\*\s*)?(?P<name>{_NAME})(?=\s|\+|$)")
_CALL = re.compile(r"\s*(?P<kind>[^()]+?)\s*\((?P<arguments>[^()]*)\)\s*")
_SETTINGS = {"uwo": ("lambda",), "gate": ("safety", "helpful", "threshold")}
_FORMS = "Write it as in 0.7*a + 0.3*b, min(a, b), uwo(a, b; lambda=0.5), gate(safety=a, helpful=b) or FILE.py:NAME(a)."


@dataclass(frozen=True, slots=True)
class Rule:
    """A parsed rule.

    Attributes:
        kind: `sum`, `mean`, `min`, `uwo`, `gate`, `lexicographic` or `function`.
        members: the scorers that it needs, in its order (gate: safety, helpful).
        numbers: sum: the weights; lexicographic: the tolerances, both one a member; uwo: (lambda,);
            gate: (threshold,), a probability.
        function: the `FILE.py:NAME` of a function.
    """

    kind: str
    members: tuple[str, ...]
    numbers: tuple[float, ...] = ()
    function: str | None = None


def parse_rule(text: str, known: Iterable[str] | None = None) -> Rule:
    """Parse the rule that a person typed; see the module's docstring for the grammar.

    Args:
        text: the rule.
        known: the existing scorers; None checks no names.

    Raises:
        UsageError: it is not a rule, or names an unknown scorer.
    """
    call = _CALL.fullmatch(text)
    rule = _call(text, call["kind"], call["arguments"]) if call else _sum(text)
    scorers = None if known is None else list(known)
    for member in rule.members:
        if scorers is not None and member not in scorers:
            raise UsageError(f"{text!r} names an unknown scorer {member!r}.{did_you_mean(member, scorers)}")
    if len(set(rule.members)) < len(rule.members):
        raise UsageError(f"{text!r} names a scorer twice.")
    return rule


def _sum(text: str) -> Rule:
    names, weights, at = [], [], 0
    while at < len(text.rstrip()):
        term = _TERM.match(text, at)
        if term is None or (at > 0 and term["sign"] is None):
            raise UsageError(f"{text!r} cannot be parsed from {text[at:].strip()!r} on. {_FORMS}")
        names.append(term["name"])
        weights.append(float(term["weight"] or 1) * (-1 if term["sign"] == "-" else 1))
        at = term.end()
    if not names:
        raise UsageError(f"there is no rule in {text!r}. {_FORMS}")
    return Rule("sum", tuple(names), tuple(weights))


def _call(text: str, kind: str, arguments: str) -> Rule:
    function = kind if ":" in kind else None
    if function is None and kind not in _KINDS:
        raise UsageError(f"{text!r}: unknown rule {kind!r}.{did_you_mean(kind, _KINDS)}")
    names, tolerances, settings = [], [], {}
    for argument in filter(None, map(str.strip, re.split("[,;]", arguments))):
        setting, equals, value = map(str.strip, argument.partition("="))
        if equals:
            if setting not in _SETTINGS.get(kind, ()):
                suggestion = did_you_mean(setting, _SETTINGS[kind]) if kind in _SETTINGS else " It has none."
                raise UsageError(f"{text!r}: {kind} has no setting {setting!r}.{suggestion}")
            settings[setting] = value
            continue
        name, tilde, tolerance = map(str.strip, argument.partition("~"))
        if not re.fullmatch(_NAME, name) or (tilde and kind != "lexicographic"):
            raise UsageError(f"{text!r}: {argument!r} is not the name of a scorer. {_FORMS}")
        names.append(name)
        tolerances.append(_positive(text, tolerance) if tilde else 0.0)
    if kind == "gate":
        if names or not {"safety", "helpful"} <= set(settings):
            raise UsageError(f"{text!r}: say which is which, as in gate(safety=a, helpful=b; threshold=0.15).")
        threshold = _positive(text, settings.get("threshold", "0.15"))
        if not 0 < threshold < 1:
            raise UsageError(f"{text!r}: the threshold is a probability between 0 and 1, not {threshold:g}.")
        return Rule("gate", (settings["safety"], settings["helpful"]), (threshold,))
    if not names:
        raise UsageError(f"{text!r} names no scorers. {_FORMS}")
    if function is not None:
        return Rule("function", tuple(names), function=function)
    given = {"uwo": (_positive(text, settings.get("lambda", "0.5")),), "lexicographic": tuple(tolerances)}
    return Rule(kind, tuple(names), given.get(kind, ()))


def _positive(text: str, written: str) -> float:
    if not re.fullmatch(_NUMBER, written):
        raise UsageError(f"{text!r}: {written!r} is not a number of 0 or more.")
    return float(written)


def combine(
    rule: Rule,
    members: pl.DataFrame,
    prompts: pl.Series,
    *,
    normalise: str = "none",
    safety_prompts: pl.Series | None = None,
) -> pl.DataFrame:
    """One score per candidate from its members'.

    Args:
        rule: the rule.
        members: one row a candidate, a column a member, null (or NaN, or infinite) where it has no score.
        prompts: each row's prompt_id.
        normalise: what is done to each member first, over the rows that have it; see `normalised`. A gate reads raw
            logits and takes none.
        safety_prompts: for gate: whether each row's prompt is tagged as one about safety; none is, unless given.

    Returns:
        The columns `score` and `reason`, one of them null, in the order of the rows. Scores of `gate` are whitened over
        the rows; those of `lexicographic` are places within the prompt from 0 to 1, and say nothing across prompts.

    Raises:
        UsageError: a member is missing, the normalisation is unknown, or a gate is to be normalised.
        InputError: the function cannot be loaded.
    """
    for name in rule.members:
        if name not in members.columns:
            raise UsageError(f"there are no scores of {name!r}.{did_you_mean(name, members.columns)}")
    if rule.kind == "gate" and normalise != "none":
        raise UsageError("gate compares raw logits with a threshold: leave the normalisation out.")
    raw = np.column_stack([_floats(members[name]) for name in rule.members])
    there = np.isfinite(raw)
    whole: NDArray[np.bool_] = np.asarray(there.all(axis=1))
    reason = np.array([f"missing_{name}" for name in rule.members], object)[there.argmin(axis=1)]
    reason[whole] = None
    values = np.column_stack([normalised(column, prompts, normalise) for column in np.where(there, raw, np.nan).T])
    score = np.full(len(raw), np.nan)
    if rule.kind == "function":
        score[whole], reason[whole] = _by_function(rule, values[whole])
    elif whole.any():
        tagged = np.zeros(len(raw), bool) if safety_prompts is None else safety_prompts.fill_null(False).to_numpy()
        score[whole] = _by_rule(rule, values[whole], prompts.filter(pl.Series(whole)), tagged[whole])
        reason[whole & ~np.isfinite(score)] = "overflow"
    score[~np.isfinite(score)] = np.nan
    return pl.DataFrame(
        {"score": pl.Series(score, dtype=pl.Float64).fill_nan(None), "reason": pl.Series(list(reason), dtype=pl.String)}
    )


def normalised(scores: Array, prompts: pl.Series, how: str) -> Array:
    """Scores on a common scale; NaN stays NaN and is not counted.

    `none`; `z` over all rows or `z-prompt` within the prompt: minus the mean, over the population standard deviation
    (0 where all are equal); `rank` within the prompt, ties averaged, from 0 (worst) to 1 (0.5 for one alone);
    `quantile` over all rows: (rank - 1/2) / n, ties averaged.

    Raises:
        UsageError: the normalisation is unknown.
    """
    if how not in NORMALISATIONS:
        raise UsageError(f"unknown normalisation {how!r}.{did_you_mean(how, NORMALISATIONS)}")
    if how == "none":
        return scores
    value = pl.col("value")
    rank = value.rank("average")
    centred = value - value.mean()
    made = {
        "z": _z(centred, value.std(ddof=0)),
        "z-prompt": _z(centred.over("prompt"), value.std(ddof=0).over("prompt")),
        "rank": pl.when(value.count().over("prompt") == 1)
        .then(pl.when(value.is_not_null()).then(0.5))
        .otherwise((rank.over("prompt") - 1) / (value.count().over("prompt") - 1)),
        "quantile": (rank - 0.5) / value.count(),
    }
    frame = pl.DataFrame({"prompt": prompts, "value": pl.Series(scores).fill_nan(None)})
    return _floats(frame.select(made[how]).to_series())


def _z(centred: pl.Expr, spread: pl.Expr) -> pl.Expr:
    # Equal numbers have a spread of some 1e-17 of their size in floating point: below 1e-12 of it there is none.
    flat = spread <= 1e-12 * pl.col("value").abs().max()
    return pl.when(flat & centred.is_not_null()).then(0.0).otherwise(centred / spread)


def _by_rule(rule: Rule, values: Array, prompts: pl.Series, tagged: NDArray[np.bool_]) -> Array:
    """Return the combined scores of rows that have every member, shape (rows,)."""
    if rule.kind == "gate":
        return _whitened(gate(values[:, 0], values[:, 1], tagged, rule.numbers[0]))
    if rule.kind == "lexicographic":
        return lexicographic(values, prompts, rule.numbers)
    if rule.kind == "uwo":
        return uncertainty_weighted(values, rule.numbers[0])
    with np.errstate(over="ignore", invalid="ignore"):
        made: dict[str, Callable[[], Array]] = {
            "sum": lambda: values @ np.array(rule.numbers),
            "mean": lambda: values.mean(axis=1),
            "min": lambda: values.min(axis=1),
        }
        return made[rule.kind]()


def uncertainty_weighted(values: Array, weight: float) -> Array:
    """Mean minus `weight` times the population variance of the members, shape (rows,) (Coste et al. 2310.02743)."""
    with np.errstate(over="ignore", invalid="ignore"):
        scores: Array = values.mean(axis=1) - weight * values.var(axis=1)
    return scores


def gate(safety: Array, helpful: Array, tagged: NDArray[np.bool_], threshold: float = 0.15) -> Array:
    """Return the logit of Llama 2's piecewise reward, before whitening (2307.09288, section 3.2.3 and 3.3).

    Safety where the prompt is tagged or its probability is strictly below the threshold, else helpfulness. Both are
    raw logits: the paper's sigmoid and logit undo each other, so only the threshold is taken to the logits' scale.
    """
    return np.where(tagged | (safety < math.log(threshold / (1 - threshold))), safety, helpful)


def _whitened(scores: Array) -> Array:
    """Mean 0 and population standard deviation 1; zeros where all are equal."""
    spread = scores.std()
    flat = spread <= 1e-12 * np.abs(scores).max()
    return np.zeros_like(scores) if flat else (scores - scores.mean()) / spread


def lexicographic(values: Array, prompts: pl.Series, tolerances: tuple[float, ...]) -> Array:
    """Each row's place within its prompt by the first member, ties broken by the next: from 0 (worst) to 1.

    Within a tolerance a member counts as equal: from the best downwards, all that are within the tolerance of the
    first of a level are of that level. (Pair by pair, "within a tolerance" would not be transitive.)
    """
    place = np.zeros(len(values))
    for rows in _groups(prompts):
        levels = [_levels(values[rows, i], tolerance) for i, tolerance in enumerate(tolerances)]
        _, level = np.unique(np.column_stack(levels), axis=0, return_inverse=True)  # 0 is the best
        counts = np.bincount(level.ravel())
        below = len(rows) - np.cumsum(counts)
        worth = below + (counts - 1) / 2
        place[rows] = worth[level.ravel()] / (len(rows) - 1) if len(rows) > 1 else 0.5
    return place


def _levels(values: Array, tolerance: float) -> NDArray[np.int64]:
    """Return the level of each value, 0 the best."""
    level = np.zeros(len(values), np.int64)
    best, current = math.inf, -1
    for row in np.argsort(-values, kind="stable"):
        if current < 0 or values[row] < best - tolerance:
            best, current = values[row], current + 1
        level[row] = current
    return level


def _groups(prompts: pl.Series) -> list[NDArray[np.int64]]:
    """Return the row numbers of each prompt."""
    rows = pl.DataFrame({"prompt": prompts}).with_row_index("row").group_by("prompt", maintain_order=True).agg("row")
    return [group.to_numpy().astype(np.int64) for group in rows["row"]]


def _by_function(rule: Rule, values: Array) -> tuple[Array, list[str | None]]:
    """f({member: score}) for each row: its number, or NaN and the reason."""
    items = (
        ScoringItem(str(number), (), json.dumps(dict(zip(rule.members, row, strict=True))), False)
        for number, row in enumerate(values.tolist())
    )
    rule_of = "prefdata.scorers.rules.function:combination_rule"
    with closing(SubprocessPool(rule_of, str(rule.function), limit=LONGEST_CALL, count=1)) as workers:
        found = list(workers.score(items))
    scores = np.array([math.nan if one.score is None else one.score for one in found], dtype=np.float64)
    return scores, [one.reason for one in found]


def function_file(rule: Rule) -> Path | None:
    """Return the file of the function that a rule calls, to be hashed into the lineage; None where it calls none."""
    return None if rule.function is None else Path(rule.function.rpartition(":")[0])


def _floats(column: pl.Series) -> Array:
    """Return a column as floats, shape (rows,), with NaN for null."""
    floats: Array = column.cast(pl.Float64).fill_null(math.nan).to_numpy()
    return floats
