"""pair: selections in, pairs out. Which candidate is chosen and which rejected.

A strategy (`strategies`, or the verdicts of judges and people) proposes a pair. It is kept if the chosen score exceeds
the rejected one by the minimum margin, the texts differ, and `limits` leave room. Every other proposal is counted by
reason; a tie never becomes a preference. Empty responses are excluded, and truncated ones as the settings say.

`other_tables` makes unpaired labels, groups and demonstrations of the same selections.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import polars as pl
import polars_hash as plh
import pyarrow as pa

from prefdata.errors import InputError, UsageError
from prefdata.ids import ID_DIGITS, digest
from prefdata.keyed_random import RowSetHash, id_bytes
from prefdata.pairs.from_comparisons import mean_verdicts, proposals_from_verdicts
from prefdata.pairs.limits import balance_groups, limit_reasons
from prefdata.pairs.other_tables import LISTINGS, kto_weights
from prefdata.pairs.strategies import Proposals, RankedCandidates, propose
from prefdata.parallel import prefetch_map, usable_cores
from prefdata.progress import Watch, watched
from prefdata.scored import PromptBatches, inputs_fingerprint, is_valid_score, open_scored
from prefdata.specs import EVERYTHING, PairSpec
from prefdata.stats.ragged import count_prompts
from prefdata.storage.queries import chosen_samplers
from prefdata.storage.report import Report, ReportBuilder, by_reason
from prefdata.storage.run import Lineage, Outcome, Partition, Run

PROPOSALS = 2_000_000
"""Proposals that are held at a time, about, where a strategy makes many more of them than there are candidates."""

_PAIR = b'{"chosen_id":"%b","rejected_id":"%b"}' % (b"A" * ID_DIGITS, b"B" * ID_DIGITS)
"""What a pair's id is the digest of, with places for two ids."""


def pair(run: Run, spec: PairSpec, *, replace: bool = False, partial: bool = False, progress: Watch = False) -> Outcome:
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
    seen = inputs_fingerprint(run, spec, source)
    if not replace and (kept := partition.unchanged(Lineage.of(spec, resolved=resolved), seen)):
        return kept
    extra = (spec.reference,) if spec.reference else ()
    judged = _verdicts(source) if spec.strategy == "comparisons" else None
    with (
        watched(progress, "pair") as watch,
        open_scored(run, spec, source, extra_samplers=extra, progress=watch) as batches,
    ):
        lineage = Lineage.of(spec, _parents(batches, judged), resolved=resolved)
        return partition.derive_in_pieces(
            lineage, lambda: _tables(run, batches, spec, source, judged, began), replace=replace, seen=seen
        )


def source_of(run: Run, spec: PairSpec, *, partial: bool = False) -> tuple[Partition, str]:
    """Return what a pairing reads, and its name in the lineage and by default.

    Raises:
        NotReady, UsageError: as `pair`.
    """
    if spec.strategy == "comparisons":
        if spec.selector or spec.scorer:
            raise UsageError("--strategy comparisons reads verdicts: --selector and --scorer do not go with it.")
        judge = run.only("comparisons", spec.judge, partial=partial)
        return judge, judge.name
    default = "scores" if spec.selector == EVERYTHING else "selections"
    named = spec.scorer or spec.selector not in (None, EVERYTHING)
    if spec.trust_reference and not named and not run.partitions(default):  # it needs no scores
        (sampler,) = chosen_samplers(run, (str(spec.reference),))
        return run.ready(sampler, partial=partial), EVERYTHING
    if spec.selector == EVERYTHING:
        scores = run.only("scores", spec.scorer, partial=partial)
        return scores, f"{EVERYTHING}-{scores.name}"
    if spec.scorer:
        raise UsageError("--scorer goes with --selector all; a selection has its scorer already.")
    selection = run.only("selections", spec.selector, partial=partial)
    return selection, selection.name


def make_pairs(
    batch: pl.DataFrame, spec: PairSpec, judged: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, ReportBuilder]:
    """Apply the pairing's rule, without side effects.

    `batch` has the columns of `prefdata.scored.reader`; the order of a prompt's rows does not matter. `judged` are the
    verdicts that strategy `comparisons` reads. Returns the pairs by prompt, then by margin, widest first.
    """
    evaluated = evaluate_proposals(batch, spec, judged)
    dropped = by_reason(evaluated.proposals["dropped"])
    kept = evaluated.proposals.filter(pl.col("dropped").is_null()) if dropped else evaluated.proposals
    kept = kept if evaluated.one_each else _ordered(kept)
    dropped.update(evaluated.missing)
    account = ReportBuilder(
        rows_in=evaluated.proposals.height + sum(evaluated.missing.values()),
        rows_out=kept.height,
        dropped=dropped,
        counts=Counter(
            prompts=evaluated.prompts,
            prompts_with_pairs=kept.height if evaluated.one_each else kept["prompt"].n_unique(),
            possible_pairs=evaluated.possible,
            pairs_not_proposed=evaluated.possible - evaluated.proposals.height,
            **evaluated.excluded,
        ),
        sums={"mean_margin": (float(kept["margin"].sum()), kept["margin"].count())},
    )
    return _columns(kept, spec), account


@dataclass(frozen=True)
class EvaluatedProposals:
    """What became of everything: the proposals, each with the reason why it is no pair, and who took no part.

    Attributes:
        proposals: prompt (its number), prompt_id, chosen and rejected ids, scores, margin, probability and `dropped`.
        candidates: candidate_id and the `reason` why it takes no part, or null.
        excluded: candidates that take no part, by reason, as figures.
        missing: what no pair was proposed for, by reason: prompts of one answer or of none, and those of `Proposals`.
        possible: pairs that could have been proposed, n(n-1)/2 for each prompt.
        prompts: how many there are.
        one_each: no prompt has two proposals.
    """

    proposals: pl.DataFrame
    candidates: pl.DataFrame
    excluded: dict[str, int]
    missing: dict[str, int]
    possible: int
    prompts: int
    one_each: bool


def evaluate_proposals(batch: pl.DataFrame, spec: PairSpec, judged: pl.DataFrame | None = None) -> EvaluatedProposals:
    """Every proposal of the strategy, and why it is no pair (or null). Arguments as `match`."""
    cut = pl.col("finish_reason").eq_missing("length")
    empty = pl.when(pl.col("chars") == 0).then(pl.lit("empty"))
    reason = pl.coalesce("excluded", empty.when(cut & (spec.truncated == "drop")).then(pl.lit("truncated")))
    batch = batch.with_columns(reason=reason, may_be_chosen=~cut if spec.truncated == "rejected" else pl.lit(True))
    able = batch if batch["reason"].null_count() == batch.height else batch.filter(pl.col("reason").is_null())
    candidates = RankedCandidates.from_frame(able)
    sizes = candidates.sizes
    prompts = len(sizes) if able is batch else count_prompts(batch)
    if spec.strategy == "comparisons":
        assert judged is not None, "comparisons are paired by their verdicts"
        proposals = proposals_from_verdicts(judged.join(batch, on="prompt_id", how="semi"), candidates)
        alone = {}  # what is counted is verdicts
    else:
        proposals = propose(candidates, spec)
        alone = {"one_candidate": int((sizes == 1).sum()), "no_candidate": prompts - len(sizes)}
    rows = _proposal_rows(candidates, proposals, spec)
    rows = rows.with_columns(dropped=_drop_reason(spec, scored=proposals.probability is None))
    return EvaluatedProposals(
        proposals=_apply_limits(rows, len(able), spec),
        candidates=batch[["candidate_id", "reason"]],
        excluded={f"left_out_{reason}": count for reason, count in by_reason(batch["reason"]).items()},
        missing={**alone, **proposals.missing},
        possible=int((sizes * (sizes - 1) // 2).sum()),
        prompts=prompts,
        one_each=proposals.one_each,
    )


def _tables(
    run: Run, batches: PromptBatches, spec: PairSpec, source: Partition, judged: pl.DataFrame | None, began: float
) -> Generator[pa.Table, None, Report]:
    """Yield the rows of the table, prompt by prompt, and return the Report."""
    total = _Total()
    scorer = str(spec.reference) if spec.trust_reference else batches.scorer or source.name
    rows = _counted(_decided(batches, spec, judged), total)
    for some in _balanced(run, rows, spec, total) if spec.balance != "none" else rows:
        yield some.with_columns(scorer=pl.lit(scorer)).to_arrow()
    return _report(total, spec, source, judged).timed(time.monotonic() - began)


@dataclass
class _Total(ReportBuilder):
    """The account of a pairing; `several` says whether any prompt has several candidates."""

    several: bool = False


Decided = tuple[pl.DataFrame, ReportBuilder, bool]
"""What is made of a batch, the account of it, and whether a prompt has several candidates."""


def _decided(batches: PromptBatches, spec: PairSpec, judged: pl.DataFrame | None) -> Iterator[Decided]:
    def rule(batch: pl.DataFrame) -> Decided:
        made = make_pairs(batch, spec, judged) if spec.as_ == "pairs" else LISTINGS[spec.as_](batch, spec)
        return *made, batch.height > count_prompts(batch)

    if spec.strategy in ("all", "against-reference"):  # many more pairs than candidates
        return prefetch_map(chain.from_iterable(map(_portions, batches)), rule, usable_cores())
    return batches.map(rule)


def _counted(made: Iterable[Decided], total: _Total) -> Iterator[pl.DataFrame]:
    for rows, account, several in made:
        total += account
        total.several = total.several or several
        yield rows


def _portions(batch: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield a batch in groups of prompts, where all of it would make too many proposals."""
    size = batch["prompt_id"].rle().struct.field("len").to_numpy().astype(np.int64)
    portion = np.cumsum(size * (size - 1) // 2) // PROPOSALS
    first = np.flatnonzero(np.diff(portion, prepend=-1))
    cuts = np.append((np.cumsum(size) - size)[first], batch.height)
    return (batch[start:stop] for start, stop in pairwise(cuts.tolist()))


_MORE = {
    "selections": "Pair among all scored candidates with --selector all, or select more of them.",
    "scores": "Sample and rank more of them.",
    "candidates": "Sample from another model, or ingest more responses.",
}


def _report(total: _Total, spec: PairSpec, source: Partition, judged: pl.DataFrame | None) -> Report:
    if judged is not None:  # the verdicts of prompts that have no answer here
        total.dropped["answer_left_out"] += judged.height - total.rows_in
        total.rows_in = judged.height
    elif total.rows_in and not total.several and spec.as_ in ("pairs", "groups"):
        alone = f"{source} keeps one candidate a prompt, so there is nothing to pair it with."
        raise InputError(f"{alone} {_MORE[source.table.name]}")
    unit = {"pairs": "proposed pairs", "groups": "prompts"}.get(spec.as_, "selected answers")
    advised = kto_weights(total.counts["good"], total.counts["bad"]) if spec.as_ == "unpaired" else {}
    return total.report("pair", unit, **advised)


def _balanced(run: Run, rows: Iterable[pl.DataFrame], spec: PairSpec, total: _Total) -> Iterator[pl.DataFrame]:
    pieces = list(rows)
    if not pieces:
        return
    pairs = pl.concat(pieces)
    kept = balance_groups(pairs, _groups(run, pairs, spec), spec.seed)
    total.dropped["balance"] += pairs.height - kept.height
    total.rows_out = kept.height
    total.counts["prompts_with_pairs"] = kept["prompt_id"].n_unique()
    total.sums["mean_margin"] = (float(kept["margin"].sum()), kept["margin"].count())
    yield kept.drop("chosen_sampler", strict=False)


def _groups(run: Run, pairs: pl.DataFrame, spec: PairSpec) -> pl.Series:
    """Return each pair's balancing group: the sampler of its chosen response, or its prompt's source."""
    if spec.balance == "sampler":
        return pairs["chosen_sampler"]
    sources = (
        pl.DataFrame(one.read(["prompt_id"])).with_columns(group=pl.lit(one.name))
        for one in run.all("prompts", partial=True)
    )
    of = pl.concat(sources).unique("prompt_id", keep="first", maintain_order=True)
    return pairs.select("prompt_id").join(of, on="prompt_id", how="left", maintain_order="left")["group"]


def _verdicts(source: Partition) -> pl.DataFrame:
    return mean_verdicts(pl.DataFrame(source.read(["prompt_id", "first_id", "second_id", "probability"])))


def _parents(batches: PromptBatches, judged: pl.DataFrame | None) -> dict[str, str]:
    """Hash the inputs of the pairs; for comparisons the verdicts too, not only the ids."""
    if judged is None:
        return batches.parents
    content = RowSetHash()
    content.add(pair_ids(judged["first_id"], judged["second_id"]), judged["probability"])
    return {name: digest([candidates, content.id]) for name, candidates in batches.parents.items()}


def _proposal_rows(candidates: RankedCandidates, proposals: Proposals, spec: PairSpec) -> pl.DataFrame:
    """Return the proposals as rows, each with the probability that the chosen response is better."""
    first, second = proposals.first, proposals.second
    if not proposals.decided:
        score = candidates.column("score")
        swap = score[second] > score[first]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
    of = candidates.rows
    chosen = of.select("prompt_id", "candidate_id", "score", "text_key", "may_be_chosen")[pl.Series(first)]
    rejected = of.select("candidate_id", "score", "text_key")[pl.Series(second)]
    scores = chosen["score"], rejected["score"]
    if proposals.probability is not None:  # something else than scores decides
        scores = (pl.repeat(None, len(first), dtype=pl.Float64, eager=True),) * 2
    rows = pl.DataFrame(
        {
            "prompt": candidates.prompt_index[first],
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
    if spec.balance == "sampler":
        rows = rows.with_columns(chosen_sampler=of["sampler"][pl.Series(first)])
    if proposals.probability is not None:
        return rows.with_columns(pl.Series("probability", proposals.probability, pl.Float64).fill_nan(None))
    return rows.with_columns(probability=1 / (1 + (-pl.col("margin") / spec.temperature).exp()))


def _drop_reason(spec: PairSpec, *, scored: bool) -> pl.Expr:
    """Return the first reason for which a proposal is dropped, or null; only `scored` proposals have a margin."""
    margin, probability = pl.col("margin"), pl.col("probability")
    reasons = {"same_text": pl.col("chosen_text_key") == pl.col("rejected_text_key")}
    if scored:
        reasons |= {
            "no_score": ~(is_valid_score("chosen_score") & is_valid_score("rejected_score")),
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


def _apply_limits(rows: pl.DataFrame, candidates: int, spec: PairSpec) -> pl.DataFrame:
    if spec.max_pairs_per_prompt is None and spec.max_per_candidate is None:
        return rows
    rows = _ordered(rows)
    good = rows.with_row_index("at").filter(pl.col("dropped").is_null())
    prompt, chosen, rejected = (good[name].to_numpy() for name in ("prompt", "chosen_number", "rejected_number"))
    over = good.select("at", over=limit_reasons(prompt, chosen, rejected, candidates, spec))
    joined = rows.with_row_index("at").join(over, on="at", how="left", maintain_order="left")
    return joined.with_columns(dropped=pl.coalesce("dropped", "over")).drop("at", "over")


def _ordered(rows: pl.DataFrame) -> pl.DataFrame:
    """By prompt, the surest first, of equals the widest margin."""
    order = ["prompt", "probability", "margin", "chosen_id", "rejected_id"]
    return rows.sort(order, descending=[False, True, True, False, False], nulls_last=[False, True, True, False, False])


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
        *(["chosen_sampler"] if spec.balance == "sampler" else []),
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
        texts[:, at : at + ID_DIGITS] = id_bytes(side)
    ends = np.arange(len(chosen) + 1, dtype=np.int64) * len(_PAIR)
    jsons = pa.LargeStringArray.from_buffers(len(chosen), pa.py_buffer(ends), pa.py_buffer(texts))
    digests = pl.DataFrame({"pair_id": pl.Series(jsons, dtype=pl.String)})
    return digests.select(plh.col("pair_id").chash.sha2_256().str.head(ID_DIGITS))["pair_id"]
