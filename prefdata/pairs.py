"""pair: selections in, pairs out. Which candidate is chosen and which rejected.

A pair is proposed by the strategy and kept if the chosen one's score is above the rejected one's by more than nothing
and by at least the margin asked for, and if the two texts differ. Every proposal that is not kept is counted by reason;
a tie never becomes a preference. Empty answers take no part (a preference over nothing teaches when to stop, not what
to say), and cut-off ones as the settings say.

- best-worst: the highest score against the lowest; with `per_prompt` also the second highest against the second
  lowest, and so on: disjoint pairs, n/2 of them at most.
- best-random: the highest score against one of the others, drawn at random.
- first-round: all in random order, the 1st against the 2nd, the 3rd against the 4th, … (RSO, 2309.06657, section 4).
- all: every two.

Ties for the highest (lowest) go to the earlier (later) draw; a candidate's coin comes from its id and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from prefdata import ids
from prefdata.draws import uniforms
from prefdata.errors import InputError, UsageError
from prefdata.reports import Report, nonzero
from prefdata.specs import PairSpec
from prefdata.store import Lineage, Outcome, Run
from prefdata.tables import PAIRS, rows_id
from prefdata.views import WHITESPACE, blank, read_candidates, read_pool

ALL = "all"
"""The selector's name that means every scored candidate."""


def pair(run: Run, spec: PairSpec, *, replace: bool = False, partial: bool = False) -> Outcome:
    """Pair candidates of each prompt, and store the pairs as `RUN/pairs/pairing=NAME`.

    Raises:
        NotReady: there is no selection (or, with `selector="all"`, no scores) yet.
        SpecConflict: a pairing of this name was made with other settings.
        InputError: the selection keeps one candidate a prompt.
    """
    rows, scorer, parents, resolved = _selected(run, spec, partial)
    partition = run.partition("pairs", spec.name or resolved["selector"])
    lineage = Lineage.of(spec, parents, resolved=resolved)

    def compute() -> tuple[pa.Table, Report]:
        if rows.height and rows.group_by("prompt_id").len()["len"].max() == 1:
            raise InputError(
                f"{next(iter(parents))} keeps one candidate a prompt, so there is nothing to pair it with. "
                "Pair among all scored candidates with --selector all, or select more of them."
            )
        made, report = match(rows, spec)
        return PAIRS.conform(made.with_columns(scorer=pl.lit(scorer)).to_arrow()), report

    return partition.derive(lineage, compute, replace=replace)


def match(selected: pl.DataFrame, spec: PairSpec) -> tuple[pl.DataFrame, Report]:
    """The pairing's rule, pure.

    `selected` has candidate_id, prompt_id, sample_index, score, text and finish_reason; the order of its rows does not
    matter. Returns the pairs ordered by prompt, then by margin, widest first.
    """
    usable = _usable(selected, spec)
    proposed = _PROPOSE[spec.strategy](usable, spec)
    judged = proposed.with_columns(
        margin=pl.col("chosen_score") - pl.col("rejected_score"),
        dropped=_why_not(spec),
    )
    kept = judged.filter(pl.col("dropped").is_null()).sort(
        ["prompt_id", "margin", "chosen_id", "rejected_id"], descending=[False, True, False, False]
    )
    alone = usable.group_by("prompt_id").len().filter(pl.col("len") == 1).height
    nothing = selected["prompt_id"].n_unique() - usable["prompt_id"].n_unique()
    reasons = dict(judged["dropped"].drop_nulls().value_counts(sort=True, name="n").iter_rows())
    report = Report(
        step="pair",
        unit="proposed pairs",
        rows_in=proposed.height + alone + nothing,
        rows_out=kept.height,
        dropped=nonzero({**dict(sorted(reasons.items())), "one_candidate": alone, "no_candidate": nothing}),
        figures={
            "prompts": selected["prompt_id"].n_unique(),
            "prompts_with_pairs": kept["prompt_id"].n_unique(),
            "empty_answers": selected.filter(blank("text")).height,
            "mean_margin": kept["margin"].mean(),
        },
    )
    return _columns(kept), report


def _selected(run: Run, spec: PairSpec, partial: bool) -> tuple[pl.DataFrame, str, dict[str, str], dict[str, str]]:
    """The rows to pair among, their scorer, what they were read from, and the selection's resolved name."""
    texts = read_candidates(run, ["candidate_id", "sample_index", "text", "finish_reason"])
    if spec.selector == ALL:
        pool = read_pool(run, spec.scorer, spec.sampler, partial=partial)
        rows = pool.rows.filter(pl.col("score").is_finite()).select("candidate_id", "prompt_id", "score")
        rows, parents, scorer, selector = rows, pool.parents, pool.scorer, f"{ALL}-{pool.scorer}"
    else:
        if spec.scorer or spec.sampler:
            raise UsageError("--scorer and --sampler go with --selector all; a selection has its scorer already.")
        partition = run.only("selections", spec.selector, partial=partial)
        table = partition.read(["candidate_id", "prompt_id", "score", "scorer"])
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        rows, selector = frame.drop("scorer"), partition.name
        scorer = frame["scorer"][0] if frame.height else ""
        parents = {str(partition): rows_id(table, "candidate_id")}
    joined = rows.join(texts, on="candidate_id", how="left")
    if missing := joined["sampler"].null_count():
        raise InputError(
            f"{missing} of {joined.height} selected candidates are not in {run} any more. Run `prefdata select` again."
        )
    return joined, scorer, parents, {"selector": selector, "scorer": scorer}


def _usable(selected: pl.DataFrame, spec: PairSpec) -> pl.DataFrame:
    cut = pl.col("finish_reason").eq_missing("length")
    rows = selected.filter(~blank("text"))
    rows = rows.filter(~cut) if spec.truncated == "drop" else rows
    may_be_chosen = ~cut if spec.truncated == "rejected" else pl.lit(True)
    coin = pl.Series("coin", uniforms(rows["candidate_id"], spec.seed, "pair", spec.strategy))
    rows = rows.with_columns(may_be_chosen=may_be_chosen).with_columns(coin)
    # The best first; of equals the earlier draw. The last row is then the worst, of equals the later draw.
    return rows.sort(["prompt_id", "score", "sample_index", "candidate_id"], descending=[False, True, False, False])


def _best_worst(usable: pl.DataFrame, spec: PairSpec) -> pl.DataFrame:
    size, place = pl.len().over("prompt_id"), pl.int_range(pl.len()).over("prompt_id")
    # Those that may be chosen first, so that the i-th of them is the i-th best that a pair can be made with.
    best = usable.sort("prompt_id", ~pl.col("may_be_chosen"), maintain_order=True).with_columns(table=place)
    worst = usable.with_columns(table=size - 1 - place)
    half = pl.col("table") < pl.min_horizontal(spec.per_prompt, pl.max_horizontal(size // 2, 1))
    return _proposals(best.filter(half), worst.filter(half), on=["prompt_id", "table"])


def _best_random(usable: pl.DataFrame, spec: PairSpec) -> pl.DataFrame:
    best = _best(usable)
    others = usable.join(best.select("candidate_id"), on="candidate_id", how="anti", maintain_order="left")
    drawn = others.sort("prompt_id", "coin", maintain_order=True).group_by("prompt_id", maintain_order=True).first()
    return _proposals(best, drawn)


def _first_round(usable: pl.DataFrame, spec: PairSpec) -> pl.DataFrame:
    place = pl.int_range(pl.len()).over("prompt_id")
    shuffled = usable.sort("prompt_id", "coin", maintain_order=True).with_columns(place=place)
    table = (pl.col("place") // 2).alias("table")
    first = shuffled.filter(pl.col("place") % 2 == 0).with_columns(table)
    second = shuffled.filter(pl.col("place") % 2 == 1).with_columns(table)
    return _ordered(first.join(second, on=["prompt_id", "table"], suffix="_2"))


def _all(usable: pl.DataFrame, spec: PairSpec) -> pl.DataFrame:
    numbered = usable.with_columns(place=pl.int_range(pl.len()).over("prompt_id"))
    both = numbered.join(numbered, on="prompt_id", suffix="_2")
    return _ordered(both.filter(pl.col("place") < pl.col("place_2")))


_PROPOSE = {"best-worst": _best_worst, "best-random": _best_random, "first-round": _first_round, "all": _all}


def _best(usable: pl.DataFrame) -> pl.DataFrame:
    # Where every candidate was cut off the best of them is proposed, and then dropped with its reason.
    ranked = usable.sort("prompt_id", ~pl.col("may_be_chosen"), maintain_order=True)
    return ranked.group_by("prompt_id", maintain_order=True).first()


def _proposals(chosen: pl.DataFrame, rejected: pl.DataFrame, on: Sequence[str] = ("prompt_id",)) -> pl.DataFrame:
    both = chosen.join(rejected, on=list(on), suffix="_2")
    return _named(both.filter(pl.col("candidate_id") != pl.col("candidate_id_2")))


def _ordered(both: pl.DataFrame) -> pl.DataFrame:
    # The one with the higher score is the chosen one.
    swap = pl.col("score_2") > pl.col("score")
    fields = ["candidate_id", "score", "text", "may_be_chosen"]
    ups = [pl.when(swap).then(pl.col(f"{f}_2")).otherwise(pl.col(f)).alias(f) for f in fields]
    downs = [pl.when(swap).then(pl.col(f)).otherwise(pl.col(f"{f}_2")).alias(f"{f}_2") for f in fields]
    return _named(both.with_columns(*ups, *downs))


def _named(both: pl.DataFrame) -> pl.DataFrame:
    return both.select(
        "prompt_id",
        "may_be_chosen",
        chosen_id="candidate_id",
        rejected_id="candidate_id_2",
        chosen_score="score",
        rejected_score="score_2",
        chosen_text="text",
        rejected_text="text_2",
    )


def _why_not(spec: PairSpec) -> pl.Expr:
    """The first reason for which a proposal is not a pair, or null."""
    margin = pl.col("chosen_score") - pl.col("rejected_score")
    same_text = pl.col("chosen_text").str.strip_chars(WHITESPACE) == pl.col("rejected_text").str.strip_chars(WHITESPACE)
    return (
        pl.when(same_text)
        .then(pl.lit("same_text"))
        .when(margin == 0)
        .then(pl.lit("tie"))
        .when(margin < 0)
        .then(pl.lit("best_was_truncated"))
        .when(~pl.col("may_be_chosen"))
        .then(pl.lit("chosen_truncated"))
        .when(margin < spec.min_margin)
        .then(pl.lit("margin"))
    )


def _columns(kept: pl.DataFrame) -> pl.DataFrame:
    names = [ids.pair_id(c, r) for c, r in zip(kept["chosen_id"], kept["rejected_id"], strict=True)]
    return kept.select(
        pl.Series("pair_id", names, dtype=pl.String),
        "prompt_id",
        "chosen_id",
        "rejected_id",
        "chosen_score",
        "rejected_score",
        "margin",
        probability=1 / (1 + (-pl.col("margin")).exp()),
        weight=pl.lit(1.0),
        verdict=pl.lit("chosen"),
    )
