"""pair: selections in, pairs out. Which candidate is chosen and which rejected.

A pair is proposed by a strategy (`strategies`, or `verdicts` of judges and people) and kept if the chosen one's score
is above the rejected one's by more than nothing and by the margin asked for, if the two texts differ, and if there is
room (`limits`). Every proposal that is not kept is counted by reason; a tie never becomes a preference. Empty answers
take no part (a preference over nothing teaches when to stop, not what to say), and cut-off ones as the settings say.

From the same selections `listings` makes unpaired labels, groups and demonstrations.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import polars_hash as plh
import pyarrow as pa

from prefdata.ahead import ahead, cores
from prefdata.draws import Content, letters
from prefdata.errors import InputError, UsageError
from prefdata.grids import how_many_prompts
from prefdata.ids import ID_DIGITS, digest
from prefdata.pairs.limits import balanced, over_the_limits
from prefdata.pairs.listings import LISTINGS, advised_weights
from prefdata.pairs.strategies import Field, Proposals, propose
from prefdata.pairs.verdicts import proposed_by, verdicts
from prefdata.pools import Pools, as_it_lies, is_score, open_pools
from prefdata.progress import Progress, quiet
from prefdata.reports import Account, Report, by_reason
from prefdata.specs import EVERYTHING, PairSpec
from prefdata.store import Lineage, Outcome, Partition, Run

PROPOSALS = 2_000_000
"""Proposals that are held at a time, about, where a strategy makes many more of them than there are answers."""

_PAIR = b'{"chosen_id":"%b","rejected_id":"%b"}' % (b"A" * ID_DIGITS, b"B" * ID_DIGITS)
"""What a pair's id is the digest of, with places for two ids."""

_SIDES = {"first": "chosen", "second": "rejected"}


def pair(
    run: Run, spec: PairSpec, *, replace: bool = False, partial: bool = False, progress: Progress = quiet
) -> Outcome:
    """Pair candidates of each prompt, and store the pairs as `RUN/pairs/pairing=NAME`.

    With `as_` the rows are those of another table: `RUN/unpaired/labelling=NAME`, `RUN/groups/grouping=NAME` or
    `RUN/demonstrations/imitation=NAME`.

    Raises:
        NotReady: there is no selection (or scores, or comparisons) yet.
        SpecConflict: a pairing of this name was made with other settings.
        InputError: the selection keeps one candidate a prompt.
        UsageError: settings that do not go together, or a name that there is not.
    """
    began = time.monotonic()
    source, name = source_of(run, spec, partial=partial)
    partition = run.partition(spec.as_, spec.name or name)
    resolved = {"selector": name} if spec.strategy != "comparisons" else {"judge": source.name}
    if not replace:
        partition.check(Lineage.of(spec, resolved=resolved))
    seen = as_it_lies(run, spec, source)
    if not replace and (kept := partition.unchanged(Lineage.of(spec, resolved=resolved), seen)):
        return kept
    beside = (spec.reference,) if spec.reference else ()
    said = _verdicts(source) if spec.strategy == "comparisons" else None
    with open_pools(run, spec, source, beside=beside, progress=progress) as pools:
        making = _Making(run, pools, spec, source, said, began)
        rows = making.rows()
        lineage = Lineage.of(spec, _parents(pools, said), resolved=resolved)
        return partition.derive_in_pieces(lineage, lambda: making.tables(rows), replace=replace, seen=seen)


def source_of(run: Run, spec: PairSpec, *, partial: bool = False) -> tuple[Partition, str]:
    """What a pairing reads, and the name that it has in the lineage and by default.

    Raises:
        NotReady, UsageError: as `pair`.
    """
    if spec.strategy == "comparisons":
        if spec.selector or spec.scorer:
            raise UsageError("--strategy comparisons reads verdicts: --selector and --scorer do not go with it.")
        judge = run.only("comparisons", spec.judge, partial=partial)
        return judge, judge.name
    if spec.selector == EVERYTHING:
        scores = run.only("scores", spec.scorer, partial=partial)
        return scores, f"{EVERYTHING}-{scores.name}"
    if spec.scorer:
        raise UsageError("--scorer goes with --selector all; a selection has its scorer already.")
    selection = run.only("selections", spec.selector, partial=partial)
    return selection, selection.name


def match(pool: pl.DataFrame, spec: PairSpec, said: pl.DataFrame | None = None) -> tuple[pl.DataFrame, Account]:
    """The pairing's rule, pure.

    `pool` has the columns of `prefdata.pools`; the order of its rows does not matter. `said` are the verdicts that
    strategy `comparisons` reads. Returns the pairs ordered by prompt, then by margin, widest first.
    """
    judged = judge(pool, spec, said)
    dropped = by_reason(judged.proposals["dropped"])
    kept = judged.proposals.filter(pl.col("dropped").is_null()) if dropped else judged.proposals
    dropped.update(judged.missing)
    account = Account(
        rows_in=judged.proposals.height + sum(judged.missing.values()),
        rows_out=kept.height,
        dropped=dropped,
        counts=Counter(
            prompts=judged.prompts,
            prompts_with_pairs=kept.height if judged.one_each else kept["prompt_id"].n_unique(),
            possible_pairs=judged.possible,
            pairs_not_proposed=judged.possible - judged.proposals.height,
            **judged.left_out,
        ),
        sums={"mean_margin": (float(kept["margin"].sum()), kept["margin"].count())},
    )
    rows = _columns(kept, spec)
    return rows if judged.one_each else _ordered(rows), account


@dataclass(frozen=True)
class Judged:
    """What became of everything: the proposals, each with the reason why it is no pair, and who took no part.

    Attributes:
        proposals: prompt_id, chosen and rejected ids, scores, margin, probability and `dropped`.
        answers: candidate_id and `why` it takes no part, or null.
        left_out: answers that take no part, by reason, as figures.
        missing: what no pair was proposed for, by reason: prompts of one answer or of none, and those of `Proposals`.
        possible: pairs that could have been proposed, n(n-1)/2 a prompt.
        prompts: how many there are.
        one_each: no prompt has two proposals, and they come in the order of the prompts' ids.
    """

    proposals: pl.DataFrame
    answers: pl.DataFrame
    left_out: dict[str, int]
    missing: dict[str, int]
    possible: int
    prompts: int
    one_each: bool


def judge(pool: pl.DataFrame, spec: PairSpec, said: pl.DataFrame | None = None) -> Judged:
    """Every proposal of the strategy, and why it is no pair (or null). Arguments as `match`."""
    cut = pl.col("finish_reason").eq_missing("length")
    empty = pl.when(pl.col("chars") == 0).then(pl.lit("empty"))
    why = pl.coalesce("left_out", empty.when(cut & (spec.truncated == "drop")).then(pl.lit("truncated")))
    pool = pool.with_columns(why=why, may_be_chosen=~cut if spec.truncated == "rejected" else pl.lit(True))
    able = pool if pool["why"].null_count() == pool.height else pool.filter(pl.col("why").is_null())
    field = Field.of_rows(able, spec)
    prompts = len(field.size) if able is pool else how_many_prompts(pool)
    if spec.strategy == "comparisons":
        assert said is not None, "comparisons are paired by their verdicts"
        proposals = proposed_by(said.join(pool, on="prompt_id", how="semi"), field)
        alone = {}  # what is counted is verdicts
    else:
        proposals = propose(field, spec)
        alone = {"one_candidate": int((field.size == 1).sum())}
        alone["no_candidate"] = prompts - len(field.size)
    scored = proposals.probability is None
    both = _both(field, proposals, spec).with_columns(dropped=_why_not(spec, scored=scored))
    return Judged(
        proposals=_limited(both, field, spec),
        answers=pool[["candidate_id", "why"]],
        left_out={f"left_out_{reason}": count for reason, count in by_reason(pool["why"]).items()},
        missing={**alone, **proposals.missing},
        possible=int((field.size * (field.size - 1) // 2).sum()),
        prompts=prompts,
        one_each=proposals.one_each,
    )


class _Making:
    """One pairing under way: its rows, some prompts at a time, and the account of them."""

    def __init__(
        self, run: Run, pools: Pools, spec: PairSpec, source: Partition, said: pl.DataFrame | None, began: float
    ) -> None:
        self._run, self._pools, self._spec, self._source, self._said = run, pools, spec, source, said
        self._began = began
        self._whole, self._several = Account(), False

    def rows(self) -> Iterator[pl.DataFrame]:
        """All rows in the order of prompts; all pools have been gone through when this returns."""
        if self._spec.strategy in ("all", "against-reference"):  # fewer wait if it is the answers, and not the pairs
            pools = self._pools.in_order(self._pools)
            portions = itertools.chain.from_iterable(_portions(pool) for pool in pools)
            return self._counted(ahead(portions, self._rule, cores()))
        return self._pools.in_order(self._counted(self._pools.each(self._rule)))

    def tables(self, rows: Iterator[pl.DataFrame]) -> Generator[pa.Table, None, Report]:
        """The rows as tables, and the Report."""
        spec, whole = self._spec, self._whole
        scorer = str(spec.reference) if spec.trust_reference else self._pools.scorer or self._source.name
        if spec.balance != "none":
            pieces = list(rows)
            rows = iter([_balanced(self._run, pl.concat(pieces), spec, whole)] if pieces else [])
        for some in rows:
            yield some.with_columns(scorer=pl.lit(scorer)).to_arrow()
        if self._said is not None:  # the verdicts of prompts that have no answer here
            whole.dropped["answer_left_out"] += self._said.height - whole.rows_in
            whole.rows_in = self._said.height
        elif whole.rows_in and not self._several and spec.as_ in ("pairs", "groups"):
            alone = f"{self._source} keeps one candidate a prompt, so there is nothing to pair it with."
            raise InputError(f"{alone} {_MORE[self._source.table.name]}")
        return _reported(whole, spec).timed(time.monotonic() - self._began)

    def _rule(self, pool: pl.DataFrame) -> tuple[bool, tuple[pl.DataFrame, Account]]:
        # Prompts are counted until one pool has several answers to one; what is ahead may be counted for nothing.
        several = self._several or pool.height > how_many_prompts(pool)
        spec = self._spec
        return several, match(pool, spec, self._said) if spec.as_ == "pairs" else LISTINGS[spec.as_](pool, spec)

    def _counted(self, made: Iterable[tuple[bool, tuple[pl.DataFrame, Account]]]) -> Iterator[pl.DataFrame]:
        for several, (rows, account) in made:
            self._several = self._several or several
            self._whole += account
            yield rows


_MORE = {
    "selections": "Pair among all scored candidates with --selector all, or select more of them.",
    "scores": "Sample and rank more of them.",
}


def _portions(pool: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """A pool some prompts at a time, in their order, where all of it would propose too much."""
    n = pl.col("len").cast(pl.Int64)
    before = (n * (n - 1) // 2).cum_sum().alias("portion") // PROPOSALS
    portions = pool.group_by("prompt_id").len().sort("prompt_id").select("prompt_id", before)
    for some in portions.partition_by("portion", maintain_order=True):
        yield pool.join(some, on="prompt_id", how="semi") if some.height < portions.height else pool


def _reported(whole: Account, spec: PairSpec) -> Report:
    unit = {"pairs": "proposed pairs", "groups": "prompts"}.get(spec.as_, "selected answers")
    advised = advised_weights(whole.counts["good"], whole.counts["bad"]) if spec.as_ == "unpaired" else {}
    return whole.report("pair", unit, **advised)


def _balanced(run: Run, pairs: pl.DataFrame, spec: PairSpec, whole: Account) -> pl.DataFrame:
    kept = balanced(pairs, _groups(run, pairs, spec), spec.seed)
    whole.dropped["balance"] += pairs.height - kept.height
    whole.rows_out = kept.height
    whole.counts["prompts_with_pairs"] = kept["prompt_id"].n_unique()
    whole.sums["mean_margin"] = (float(kept["margin"].sum()), kept["margin"].count())
    return kept


def _groups(run: Run, pairs: pl.DataFrame, spec: PairSpec) -> pl.Series:
    """What each pair is balanced by: its prompt's source, or the sampler of its chosen answer."""
    table, key = ("prompts", "prompt_id") if spec.balance == "source" else ("candidates", "candidate_id")
    of = pl.concat(
        pl.DataFrame(one.read([key])).with_columns(group=pl.lit(one.name)) for one in run.all(table, partial=True)
    ).unique(key, keep="first", maintain_order=True)
    mine = "prompt_id" if spec.balance == "source" else "chosen_id"
    return pairs.select(mine).join(of, left_on=mine, right_on=key, how="left", maintain_order="left")["group"]


def _verdicts(source: Partition) -> pl.DataFrame:
    return verdicts(pl.DataFrame(source.read(["prompt_id", "first_id", "second_id", "probability"])))


def _parents(pools: Pools, said: pl.DataFrame | None) -> dict[str, str]:
    """What the pairs are made from, by content; of comparisons what was said counts, and not only about whom."""
    if said is None:
        return pools.parents
    content = Content()
    content.add(pair_ids(said["first_id"], said["second_id"]), said["probability"])
    return {name: digest([whom, content.id]) for name, whom in pools.parents.items()}


def _both(field: Field, proposals: Proposals, spec: PairSpec) -> pl.DataFrame:
    """The proposals as rows, each with the probability that the chosen one is better."""
    first, second = proposals.first, proposals.second
    if not proposals.decided:
        score = field.column("score")
        swap = score[second] > score[first]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
    chosen = field.take(first, "prompt_id", "candidate_id", "score", "text_key", "may_be_chosen")
    rejected = field.take(second, "candidate_id", "score", "text_key")
    scores = chosen["score"], rejected["score"]
    if proposals.probability is not None:  # something else than scores decides
        scores = (pl.repeat(None, len(first), dtype=pl.Float64, eager=True),) * 2
    both = pl.DataFrame(
        {
            "prompt_id": chosen["prompt_id"],
            "chosen_id": chosen["candidate_id"],
            "rejected_id": rejected["candidate_id"],
            "chosen_score": scores[0],
            "rejected_score": scores[1],
            "margin": scores[0] - scores[1],
            "chosen_text_key": chosen["text_key"],
            "rejected_text_key": rejected["text_key"],
            "chosen_may_be_chosen": chosen["may_be_chosen"],
            "chosen_number": first,
            "rejected_number": second,
        }
    )
    if proposals.probability is not None:
        return both.with_columns(pl.Series("probability", proposals.probability, pl.Float64).fill_nan(None))
    return both.with_columns(probability=1 / (1 + (-pl.col("margin") / spec.temperature).exp()))


def _why_not(spec: PairSpec, *, scored: bool) -> pl.Expr:
    """The first reason for which a proposal is not a pair, or null; `scored` ones have a margin, others none."""
    margin, probability = pl.col("margin"), pl.col("probability")
    reasons = {"same_text": pl.col("chosen_text_key") == pl.col("rejected_text_key")}
    if scored:
        reasons |= {
            "no_score": ~(is_score("chosen_score") & is_score("rejected_score")),
            "tie": margin == 0,
            "best_was_truncated": margin < 0,
            "chosen_truncated": ~pl.col("chosen_may_be_chosen"),
            "margin": margin < spec.min_margin,
        }
        if spec.max_margin is not None:
            reasons["max_margin"] = margin > spec.max_margin
    else:
        tie = probability == 0.5
        reasons |= {
            "no_verdict": probability.is_null(),
            "tie": tie & (spec.ties == "drop"),
            "chosen_truncated": ~pl.col("chosen_may_be_chosen") & ~tie,
        }
    reasons["unsure"] = (probability < spec.min_probability) & (margin.is_not_null() | (probability > 0.5))
    return pl.coalesce(*(pl.when(holds).then(pl.lit(reason)) for reason, holds in reasons.items()))


def _limited(both: pl.DataFrame, field: Field, spec: PairSpec) -> pl.DataFrame:
    if spec.max_pairs_per_prompt is None and spec.max_per_candidate is None:
        return both
    both = _ordered(both)
    good = both.with_row_index("at").filter(pl.col("dropped").is_null())
    chosen, rejected = (good[f"{side}_number"].to_numpy() for side in ("chosen", "rejected"))
    why = over_the_limits(field.of[chosen], chosen, rejected, len(field.of), spec)
    over = good.select("at", over=why)
    joined = both.with_row_index("at").join(over, on="at", how="left", maintain_order="left")
    return joined.with_columns(dropped=pl.coalesce("dropped", "over")).drop("at", "over")


def _ordered(both: pl.DataFrame) -> pl.DataFrame:
    """By prompt, the surest first, of equals the widest apart."""
    order = ["prompt_id", "probability", "margin", "chosen_id", "rejected_id"]
    return both.sort(order, descending=[False, True, True, False, False], nulls_last=[False, True, True, False, False])


def _columns(kept: pl.DataFrame, spec: PairSpec) -> pl.DataFrame:
    confidence = 2 * pl.col("probability") - 1
    tied = pl.col("margin").is_null() & (pl.col("probability") == 0.5)
    return kept.select(
        pair_ids(kept["chosen_id"], kept["rejected_id"]),
        "prompt_id",
        "chosen_id",
        "rejected_id",
        "chosen_score",
        "rejected_score",
        "margin",
        "probability",
        weight=confidence if spec.weight == "confidence" else pl.lit(1.0),
        verdict=pl.when(tied).then(pl.lit("tie")).otherwise(pl.lit("chosen")),
    )


def pair_ids(chosen: pl.Series, rejected: pl.Series) -> pl.Series:
    """`ids.pair_id` of many: ids need no escapes and are equally long, so that their JSON can be written in place.

    They are hashed outside of Python, whose lock lets one thread hash at a time.
    """
    texts = np.empty((len(chosen), len(_PAIR)), np.uint8)
    texts[:] = np.frombuffer(_PAIR, np.uint8)
    for side, at in ((chosen, _PAIR.index(b"A")), (rejected, _PAIR.index(b"B"))):
        texts[:, at : at + ID_DIGITS] = letters(side)
    ends = np.arange(len(chosen) + 1, dtype=np.int64) * len(_PAIR)
    said = pa.LargeStringArray.from_buffers(len(chosen), pa.py_buffer(ends), pa.py_buffer(texts))
    digests = pl.DataFrame({"pair_id": pl.Series(said, dtype=pl.String)})
    return digests.select(plh.col("pair_id").chash.sha2_256().str.head(ID_DIGITS))["pair_id"]
