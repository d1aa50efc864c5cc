"""eval reward-model: agreement of scores with labelled pairs, calibration and length bias.

Accuracy by source and subset with Wilson's 95% interval, in which the pairs of one prompt count for as many as are
independent, a tie as half; margins; calibration of sigmoid(margin) (ECE and the data of a reliability diagram); length
bias, and the baseline that takes the longer response; and where a run is given, how the scores of each sampler's
responses compare with the labelled ones. The labelled pairs come in any layout that `train rm` reads, from a run's
pairs or a file; no training set is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prefdata.errors import InputError
from prefdata.formats.reading import ReadOptions
from prefdata.ids import Message, without_nulls
from prefdata.scorers.protocol import Scorer, ScoringItem
from prefdata.stats.calibration import calibration_error, correlation, reliability, sigmoid
from prefdata.stats.proportions import effective_pairs, wilson
from prefdata.storage.atomic import write_output
from prefdata.storage.queries import read_candidates, read_preferences, read_prompts
from prefdata.storage.run import Run
from prefdata.train.data import open_source
from prefdata.train.parsing import Item as Labelled
from prefdata.train.parsing import Needs

GROUPS = ("source", "subset")
"""Columns that pairs are grouped by, where they exist."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Pair:
    """A labelled pair: both responses as items, and which groups it belongs to."""

    chosen: ScoringItem
    rejected: ScoringItem
    groups: dict[str, str]
    ids: tuple[str, str] | None = None


@dataclass(frozen=True)
class Evaluation:
    """The figures of a reward model on labelled pairs.

    Attributes:
        accuracy: one row a group: group, value, pairs, unscored, ties, accuracy, low, high, longer (the accuracy of
            taking the longer response), mean_margin.
        margins: the quantiles of the margin, by name, and its mean.
        ece: expected calibration error of sigmoid(|margin|), ten bins.
        reliability: the rows of the reliability diagram.
        length: accuracy of the longer response, the correlations of score and margin with length in characters, and the
            accuracy where the chosen response is the longer and where it is the shorter.
        distributions: one row for chosen, rejected, and each sampler of a run: responses, mean, std, quantiles, and the
            shift of the mean from the labelled responses in their standard deviations.
    """

    accuracy: pl.DataFrame
    margins: dict[str, float]
    ece: float
    reliability: pl.DataFrame
    length: dict[str, float | None]
    distributions: pl.DataFrame

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            name: value.to_dicts() if isinstance(value, pl.DataFrame) else value
            for name, value in ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        }


def from_data(
    data: Path | str,
    *,
    part: str | None = None,
    by: Sequence[str] = GROUPS,
    options: ReadOptions | None = None,
    left_out: Counter[str] | None = None,
) -> list[Pair]:
    """Read the labelled pairs of files, an export, a hub dataset or a run.

    Args:
        data: what `train` takes.
        part: which pairing of a run.
        by: columns to group by.
        options: how files are read.
        left_out: counts the rows that are not a pair, by reason.

    Raises:
        InputError, BadRows: it cannot be read, or rows of it cannot be used.
    """
    found = open_source(data, "preferences", part=part)
    items = found.items(Needs("preferences"), options)
    pairs = [_pair(f"{found.name}:{number}", item, by) for number, item in enumerate(items)]
    if left_out is not None:
        left_out.update(items.skipped + items.reader.dropped)
    return pairs


def score_pairs(scorer: Scorer, pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Score both sides of all pairs, by the items' keys, with a scorer of one output.

    Raises:
        InputError: the scorer has several outputs.
    """
    if len(scorer.outputs) != 1:
        raise InputError(f"{len(scorer.outputs)} outputs cannot be judged at once. Name one with --label.")
    sides = (side for pair in pairs for side in (pair.chosen, pair.rejected))
    return {scored.key: scored.score for scored in scorer.score(sides)}


def stored_pairs(run: Run, scorer: str, part: str | None = None) -> tuple[list[Pair], dict[str, float | None]]:
    """Read a run's pairs with the scores that it already has: no model is needed.

    Raises:
        NotReady, UsageError: there are no such pairs or scores.
    """
    rows = read_preferences(run.only("pairs", part), ["pair_id", "prompt_id", "chosen_id", "rejected_id"])
    answers = read_candidates(run, ["candidate_id", "text"])
    texts = dict(zip(answers["candidate_id"], answers["text"], strict=True))
    asked = read_prompts(run, partial=True).select("prompt_id", "messages", "tools")
    prompts = {key: (tuple(without_nulls(messages)), tools) for key, messages, tools in asked.iter_rows()}
    held = _frame(run.only("scores", scorer).read(["candidate_id", "score"]))
    known = dict(held.iter_rows())
    pairs, scores = [], {}
    for row in rows.iter_rows(named=True):
        sides = []
        messages, tools = prompts[row["prompt_id"]]
        for name in ("chosen", "rejected"):
            sides.append(
                ScoringItem(f"{row['pair_id']}/{name}", messages, texts[row[f"{name}_id"]], False, tools=tools)
            )
            scores[sides[-1].key] = known.get(row[f"{name}_id"])
        pairs.append(Pair(sides[0], sides[1], {}, (row["chosen_id"], row["rejected_id"])))
    return pairs, scores


def sampler_scores(run: Run, scorer: str) -> dict[str, list[float]]:
    """Return the scores that a run has of each sampler's responses."""
    answers = read_candidates(run, ["candidate_id"], of_each=True)
    held = _frame(run.only("scores", scorer).read(["candidate_id", "score"]))
    joined = answers.join(held, on="candidate_id").drop_nulls("score")
    return {str(name): part["score"].to_list() for (name,), part in joined.group_by("sampler", maintain_order=True)}


def evaluate(
    pairs: Sequence[Pair], scores: Mapping[str, float | None], samplers: Mapping[str, Sequence[float]] | None = None
) -> Evaluation:
    """Compute the figures of scores on labelled pairs.

    Args:
        pairs: the labelled pairs.
        scores: of every side, by its key; a missing one leaves the pair out, and is counted.
        samplers: scores of other responses, by sampler.

    Raises:
        InputError: no pair has two scores.
    """
    frame = _judged(pairs, scores)
    both = frame.drop_nulls("margin")
    if both.height == 0:
        raise InputError(f"none of the {len(pairs)} pairs has a score for both responses. See their reasons with rank.")
    margin = both["margin"].to_numpy()
    confidence, right = sigmoid(np.abs(margin)), (np.sign(margin) + 1) / 2
    quantiles = {f"q{round(q * 100):02d}": float(np.quantile(margin, q)) for q in QUANTILES}
    return Evaluation(
        accuracy=_accuracy(frame),
        margins={"mean": float(margin.mean()), "std": float(margin.std()), **quantiles},
        ece=calibration_error(confidence, right),
        reliability=reliability(confidence, right),
        length=_length(both),
        distributions=_distributions(both, samplers or {}),
    )


def write_rows(path: Path, pairs: Sequence[Pair], scores: Mapping[str, float | None]) -> None:
    """Write one JSON object per pair: prompt, chosen, rejected, their scores, margin, correct (or null).

    Raises:
        InputError: the file cannot be written.
    """
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(pairs, scores))
    try:
        write_output(path, lambda file: file.writelines(lines))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}.") from None


def _pair(key: str, item: Labelled, by: Sequence[str]) -> Pair:
    prompt = item.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    tools = None if item.tools is None else json.dumps(item.tools)
    sides = [_item(f"{key}/{name}", messages, answer, tools) for name, answer in zip("cr", item.answers, strict=True)]
    groups = {name: str(item.row.values[name]) for name in by if item.row.values.get(name) is not None}
    return Pair(sides[0], sides[1], groups)


def _frame(table: Any) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _item(
    key: str, prompt: Sequence[Mapping[str, str]], answer: str | list[dict[str, str]], tools: str | None
) -> ScoringItem:
    response = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    turns: list[Any] = [*prompt, *response]
    messages: tuple[Message, ...] = tuple(turns[:-1])
    return ScoringItem(key, messages, turns[-1]["content"], False, tools=tools)


def _rows(pairs: Sequence[Pair], scores: Mapping[str, float | None]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        one, other = scores.get(pair.chosen.key), scores.get(pair.rejected.key)
        margin = None if one is None or other is None else one - other
        yield {
            "prompt": list(pair.chosen.messages),
            "chosen": pair.chosen.response,
            "rejected": pair.rejected.response,
            "chosen_score": one,
            "rejected_score": other,
            "margin": margin,
            "correct": None if not margin else margin > 0,
            **pair.groups,
        }


def _judged(pairs: Sequence[Pair], scores: Mapping[str, float | None]) -> pl.DataFrame:
    rows = [
        {
            "prompt": json.dumps([pair.chosen.messages, pair.chosen.tools]),
            "chosen": scores.get(pair.chosen.key),
            "rejected": scores.get(pair.rejected.key),
            "chosen_length": len(pair.chosen.response),
            "rejected_length": len(pair.rejected.response),
            "groups": json.dumps(pair.groups),
        }
        for pair in pairs
    ]
    kinds = {"chosen": pl.Float64, "rejected": pl.Float64}
    frame = pl.DataFrame(rows, schema_overrides=kinds)
    return frame.with_columns(margin=pl.col("chosen") - pl.col("rejected"))


def _accuracy(frame: pl.DataFrame) -> pl.DataFrame:
    groups = [json.loads(text) for text in frame["groups"]]
    rows = [_group("all", "", frame)]
    for name in dict.fromkeys(name for group in groups for name in group):
        values = pl.Series([group.get(name) for group in groups], dtype=pl.String)
        rows += [_group(name, v, frame.filter(values == v)) for v in values.drop_nulls().unique().sort()]
    return pl.DataFrame(rows)


def _group(name: str, value: str, frame: pl.DataFrame) -> dict[str, Any]:
    both = frame.drop_nulls("margin")
    row: dict[str, Any] = {"group": name, "value": value, "pairs": frame.height, "unscored": frame.height - both.height}
    if both.height == 0:
        return row | dict.fromkeys(("ties", "accuracy", "low", "high", "longer", "mean_margin"))
    right = (np.sign(both["margin"].to_numpy()) + 1) / 2
    share = float(right.mean())
    low, high = wilson(share, effective_pairs(right, both["prompt"]))
    return row | {
        "ties": int((both["margin"] == 0).sum()),
        "accuracy": share,
        "low": low,
        "high": high,
        "longer": float(((np.sign(both["chosen_length"] - both["rejected_length"]) + 1) / 2).mean()),
        "mean_margin": both["margin"].mean(),
    }


def _length(both: pl.DataFrame) -> dict[str, float | None]:
    score = np.concatenate([both["chosen"].to_numpy(), both["rejected"].to_numpy()])
    lengths = np.concatenate([both["chosen_length"].to_numpy(), both["rejected_length"].to_numpy()]).astype(float)
    gap = (both["chosen_length"] - both["rejected_length"]).to_numpy().astype(float)
    margin = both["margin"].to_numpy()

    def among(rows: Any) -> float | None:
        return float(((np.sign(margin[rows]) + 1) / 2).mean()) if rows.any() else None

    return {
        "model": among(np.ones(len(margin), bool)),
        "longer_answer": float(((np.sign(gap) + 1) / 2).mean()),
        "model_where_chosen_is_longer": among(gap > 0),
        "model_where_chosen_is_shorter": among(gap < 0),
        "correlation_score_length": correlation(score, lengths),
        "correlation_margin_length": correlation(margin, gap),
    }


def _distributions(both: pl.DataFrame, samplers: Mapping[str, Sequence[float]]) -> pl.DataFrame:
    labelled = np.concatenate([both["chosen"].to_numpy(), both["rejected"].to_numpy()])
    sides = {"chosen": both["chosen"].to_numpy(), "rejected": both["rejected"].to_numpy()}
    rows = []
    for name, found in {**sides, **{f"sampler {name}": np.array(values) for name, values in samplers.items()}}.items():
        if len(found) == 0:
            continue
        shift = float((found.mean() - labelled.mean()) / labelled.std()) if labelled.std() > 0 else None
        quantiles = {f"q{round(q * 100):02d}": float(np.quantile(found, q)) for q in QUANTILES}
        figures = {"mean": float(found.mean()), "std": float(found.std())}
        rows.append({"answers_of": name, "answers": len(found), **figures, **quantiles, "shift": shift})
    return pl.DataFrame(rows)
