"""What pair writes besides pairs, from the same selected answers: unpaired labels, groups in order, demonstrations.

Three pure rules. Each is given a batch of the selected candidates (`prefdata.scored.reader`), and returns the rows of
its table without the scorer, prompts in the order of the batch, and the account.

- unpaired (KTO, 2402.01306): each answer good or bad on its own: by a threshold, by the prompt's median, or as one of
  the prompt's best and worst. What stands on the border is neither.
- groups (RRHF, 2304.05302; SLiC, 2210.00045; Plackett-Luce): a prompt's answers, best first; ties share a rank.
- demonstrations (RFT, RAFT, ReST): every answer, weighted by how often it was drawn.

Empty responses are left out. A truncated response is never good, above another or imitated unless
`truncated="keep"`; with "rejected" it may be bad, or the last of a group. Of one text that came several times for a
prompt the earliest draw stands in labels and groups (`same_text`): no text is good and bad, or above itself.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl

from prefdata.specs import PairSpec
from prefdata.stats.ragged import RaggedRows
from prefdata.storage.report import ReportBuilder, by_reason

KTO_RATIO = 4 / 3
"""The most that all good answers together should weigh, all bad ones together being 1; the least is 1 (KTO, 4.2)."""


def unpaired(rows: pl.DataFrame, spec: PairSpec) -> tuple[pl.DataFrame, ReportBuilder]:
    """Each answer good or bad by `spec.label_by`, by prompt, best first.

    - threshold: good from `spec.threshold` up, bad below.
    - median: good strictly above the prompt's median, bad strictly below; equal is a `tie`.
    - top-bottom: the `spec.top` best are good, the `spec.bottom` worst bad. Equal scores on both sides of a border are
      a `tie`, what would be both is an `overlap`, what is between is the `middle`; all three are dropped.

    Truncated responses count for the median and for the places, also where they get no label (`good_truncated`).
    """
    usable, dropped = _each_text_once(*_usable(rows, without_truncated=spec.truncated == "drop"))
    label = _label(spec)
    if spec.truncated == "rejected":
        label = pl.when((label == "good") & _truncated()).then(pl.lit("good_truncated")).otherwise(label)
    labelled = _standing(usable).with_columns(label=label)
    counts = dict(by_reason(labelled["label"]))
    good, bad = counts.pop("good", 0), counts.pop("bad", 0)
    kept = labelled.filter(pl.col("label").is_in(["good", "bad"]))
    account = ReportBuilder(
        rows_in=rows.height,
        rows_out=kept.height,
        dropped=Counter(dropped | counts),
        counts=Counter(
            good=good,
            bad=bad,
            prompts=rows["prompt_id"].n_unique(),
            prompts_with_labels=kept["prompt_id"].n_unique(),
        ),
    )
    columns = kept.select("candidate_id", "prompt_id", pl.col("label") == "good", "score", weight=pl.lit(1.0))
    return columns.rename({"label": "good"}), account


def kto_weights(good: int, bad: int) -> dict[str, float | None]:
    """Return the range of weights of a good response, relative to 1 for a bad one, that KTO recommends.

    With the first the good ones together weigh what the bad ones do, with the second 4/3 of it; None where there are
    none of a kind.
    """
    balance = bad / good if good and bad else None
    return {"desirable_weight": balance, "desirable_weight_max": balance and balance * KTO_RATIO}


def groups(rows: pl.DataFrame, spec: PairSpec) -> tuple[pl.DataFrame, ReportBuilder]:
    """Each prompt's answers as one row, best first and of equals the earlier sample.

    A prompt of no answer, of one, or of equal scores alone has no order: it is dropped.
    """
    usable, left_out = _each_text_once(*_usable(rows, without_truncated=spec.truncated == "drop"))
    ranked = _standing(usable)
    if spec.truncated == "rejected":
        last = ranked.filter(~_truncated() | (pl.col("below") == 0))
        left_out["truncated"] = ranked.height - last.height
        ranked = _placed(last)
    made = ranked.group_by("prompt", maintain_order=True).agg(
        pl.col("prompt_id").first(),
        candidate_ids="candidate_id",
        scores="score",
        ranks=(pl.col("above") + 1).cast(pl.Int32),
    )
    alone = made["candidate_ids"].list.len() == 1
    tied = made["ranks"].list.last() == 1  # the last shares the first place
    kept = made.filter(~tied).drop("prompt")
    prompts = rows["prompt_id"].n_unique()
    dropped = {"tie": int((tied & ~alone).sum()), "one_candidate": int(alone.sum())}
    account = ReportBuilder(
        rows_in=prompts,
        rows_out=kept.height,
        dropped=Counter(dropped | {"no_candidate": prompts - made.height}),
        counts=Counter(
            answers=int(kept["ranks"].list.len().sum()),
            **{f"left_out_{reason}": count for reason, count in left_out.items() if count},
        ),
    )
    return kept, account


def demonstrations(rows: pl.DataFrame, spec: PairSpec) -> tuple[pl.DataFrame, ReportBuilder]:
    """Every answer, by prompt, best first; `rank` is its place there, `weight` how often it was drawn, or 1."""
    usable, dropped = _usable(rows, without_truncated=spec.truncated != "keep")
    kept = _standing(usable).select(
        "candidate_id",
        "prompt_id",
        "score",
        rank=pl.col("place").cast(pl.Int32),
        weight=pl.col("draws").fill_null(1).cast(pl.Float64),
    )
    account = ReportBuilder(
        rows_in=rows.height,
        rows_out=kept.height,
        dropped=Counter(dropped),
        counts=Counter(prompts=rows["prompt_id"].n_unique(), prompts_with_demonstrations=kept["prompt_id"].n_unique()),
        sums={"mean_score": (float(kept["score"].sum()), kept.height)},
    )
    return kept, account


LISTINGS = {"unpaired": unpaired, "groups": groups, "demonstrations": demonstrations}
"""The rule of each table, by its name."""


def _truncated() -> pl.Expr:
    return pl.col("finish_reason").eq_missing("length")


def _usable(rows: pl.DataFrame, *, without_truncated: bool) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the eligible responses, with the numbers of their prompts, and counts of the excluded ones by reason."""
    dropped = dict(by_reason(rows["excluded"]))
    grouped = RaggedRows.from_frame(rows)
    able = grouped.rows.with_columns(prompt=grouped.prompt_index).filter(pl.col("excluded").is_null())
    written = able.filter(pl.col("chars") > 0)
    kept = written.filter(~_truncated()) if without_truncated else written
    return kept, dropped | {"empty": able.height - written.height, "truncated": written.height - kept.height}


def _each_text_once(rows: pl.DataFrame, dropped: dict[str, int]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Keep the earliest sample of each distinct text per prompt."""
    sampled = rows.sort("round", "sample_index", "candidate_id")
    kept = sampled.unique(["prompt", "text_key"], keep="first")
    return kept, dropped | {"same_text": rows.height - kept.height}


def _standing(rows: pl.DataFrame) -> pl.DataFrame:
    """Rank the rows per prompt, best first; ties go to the earlier sample."""
    order = ["prompt", "score", "sample_index", "candidate_id"]
    return _placed(rows.sort(order, descending=[False, True, False, False]))


def _placed(rows: pl.DataFrame) -> pl.DataFrame:
    """Ordered rows, and the place of each among its prompt's answers.

    Adds `place` (from 1), `above` and `below` (how many of them have a higher and a lower score) and `size`.
    """
    row = np.arange(rows.height)
    new_prompt = rows["prompt"].ne_missing(rows["prompt"].shift()).to_numpy()
    new_score = new_prompt | rows["score"].ne_missing(rows["score"].shift()).to_numpy()
    prompt, tie = np.cumsum(new_prompt) - 1, np.cumsum(new_score) - 1
    prompts = np.append(np.flatnonzero(new_prompt), rows.height)
    ties = np.append(np.flatnonzero(new_score), rows.height)
    start, end = prompts[prompt], prompts[prompt + 1]
    return rows.with_columns(
        place=row - start + 1, above=ties[tie] - start, below=end - ties[tie + 1], size=end - start
    )


def _label(spec: PairSpec) -> pl.Expr:
    """good, bad, or the reason why neither, from where an answer stands; no rule but the threshold sees the score."""
    above, below, size = pl.col("above"), pl.col("below"), pl.col("size")
    good, bad = pl.lit("good"), pl.lit("bad")
    if spec.label_by == "threshold":
        return pl.when(pl.col("score") >= spec.threshold).then(good).otherwise(bad)
    if spec.label_by == "median":
        # Above the median is what half of the prompt's answers or more are below.
        return pl.when(2 * below >= size).then(good).when(2 * above >= size).then(bad).otherwise(pl.lit("tie"))
    last, first = size - below, size - above  # the last place of those with this score from above, and from below
    across = (above < spec.top) & (last > spec.top) | (below < spec.bottom) & (first > spec.bottom)
    best, worst = last <= spec.top, first <= spec.bottom
    return (
        pl.when(across)
        .then(pl.lit("tie"))
        .when(best & worst)
        .then(pl.lit("overlap"))
        .when(best)
        .then(good)
        .when(worst)
        .then(bad)
        .otherwise(pl.lit("middle"))
    )
