"""Joining: what a source asks for, with all that a decision needs to know of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from prefdata.draws import among, leading_bits
from prefdata.errors import InputError, UsageError
from prefdata.ids import digest
from prefdata.pools.parts import EVERY_ROW, Part, Rows, read
from prefdata.pools.sieve import Sieve
from prefdata.specs import PoolSpec
from prefdata.store import MADE_BY, Partition, Run
from prefdata.tables import TABLES
from prefdata.template_files import read_template
from prefdata.views import WHITESPACE, matching

REFUSAL_CHARS = 120
"""How far into an answer the phrases of a refusal are looked for."""

LARGEST_SCORE = 1e100
"""What is larger, or below its negative, is no score: sums and differences of such would be infinite."""

REASONS = ("no_score", "where", "refusal", "too_short", "too_long")
"""Why a row takes no part, in the order in which they are looked for."""

NONE_ASKED = pl.DataFrame(
    schema={
        "candidate_id": pl.String,
        "prompt_id": pl.String,
        "score": pl.Float64,
        "draws": pl.Int32,
        "extra": pl.Boolean,
    }
)
"""No rows of what a source asks for."""

_CANDIDATE = ["candidate_id", "sample_index", "round", "finish_reason", "text_key", "chars"]


class Joining:
    """How the candidates that a source names find what is known of them.

    Attributes:
        source: what names them.
        may_repeat: the source may name a candidate several times.
        self_contained: the source holds what is known of its candidates, and they are there as they were then.
    """

    def __init__(
        self,
        run: Run,
        spec: PoolSpec,
        source: Partition,
        samplers: list[Partition],
        *,
        beside: tuple[str, ...] = (),
        texts: bool = False,
        whole: bool = True,
    ) -> None:
        """Arguments as `open_pools`; of a candidate that several samplers drew, the first one's is taken.

        `whole` says that all prompts are asked for.

        Raises:
            UsageError: a condition that DuckDB does not take, or a file that holds no phrases.
        """
        self.source = source
        self._run, self._spec, self._beside, self._texts = run, spec, beside, texts
        self._samplers = [sampler.name for sampler in samplers]
        self._wanted = {*spec.sampler, *beside} if spec.sampler else None
        self._fitting = (
            None if spec.where is None else np.sort(leading_bits(_fitting(run, spec.where, scorer_of(source))))
        )
        self._phrases = _phrases(spec) if spec.refusals == "drop" else []
        # A source that was stopped in the middle, or that names one candidate in many rows, may have rows twice.
        self.may_repeat = source.state != "finished" or source.table.name == "comparisons" or bool(beside)
        self.self_contained = whole and self._is_self_contained()
        self.nothing_known = self._known(
            "", pl.DataFrame(TABLES["candidates"].empty()).select(*_CANDIDATE, "prompt_id", "text")
        )
        self.nothing = self.join((NONE_ASKED, self.nothing_known))

    def _is_self_contained(self) -> bool:
        """Whether it is a selection whose candidates lie as they did then, and nothing asks for more of them."""
        success = self.source.success() if self.source.table.name == "selections" else None
        if success is None or self._beside or self._texts or self._phrases or self._wanted is not None:
            return False
        there = {str(sampler): sampler.as_it_lies() for sampler in self._run.partitions("candidates")}
        return {name: lies for name, lies in success.seen.items() if name.startswith("candidates/")} == there

    def asked_for(self, named: Sequence[Part], some: Rows = EVERY_ROW) -> pl.DataFrame:
        """Whom parts of one partition name: the columns of NONE_ASKED, and what it knows of them if that is all."""
        table = named[0].of.table.name
        if table == "comparisons":
            both = read(named, ["first_id", "second_id", "prompt_id"], some)
            sides = [both.select("prompt_id", candidate_id=side) for side in ("first_id", "second_id")]
            rows = pl.concat(sides).unique("candidate_id", maintain_order=True)
            rows = rows.with_columns(score=pl.lit(None, pl.Float64))
        else:
            columns = ["candidate_id", "prompt_id", "score", *(["draws"] if table == "selections" else [])]
            known = [*_CANDIDATE[1:], "sampler"] if self.self_contained else []
            rows = read(named, [*columns, *known], some)
        draws = "draws" if "draws" in rows.columns else pl.lit(None, pl.Int32).alias("draws")
        asked = NONE_ASKED.columns
        return rows.select(*asked[:-2], draws, pl.lit(named[0].extra).alias("extra"), pl.exclude(asked))

    def known(
        self,
        drawn: Sequence[Part],
        some: Rows = EVERY_ROW,
        *,
        sieve: Sieve | None = None,
        with_prompt: bool = True,
    ) -> pl.DataFrame:
        """What is known of candidates in parts of a sampler; texts are read only where something asks for them."""
        asks = self._texts or bool(self._phrases)
        columns = [*_CANDIDATE, *(["prompt_id"] if with_prompt else []), *(["text"] if asks else [])]
        rows = read(drawn, columns, some)
        return self._known(drawn[0].of.name, rows if sieve is None else sieve.sift(rows))

    def _known(self, sampler: str, rows: pl.DataFrame) -> pl.DataFrame:
        said = {"refuses": self._refuses(rows["text"].fill_null(""))} if self._phrases else {}
        kept = rows if self._texts else rows.drop("text", strict=False)
        return kept.with_columns(sampler=pl.lit(sampler), **said)

    def _refuses(self, texts: pl.Series) -> pl.Series:
        start = texts.str.strip_chars_start(WHITESPACE).str.head(REFUSAL_CHARS).str.replace_all("’", "'", literal=True)
        return start.str.to_lowercase().str.contains_any(self._phrases)

    def join(self, both: tuple[pl.DataFrame, pl.DataFrame | None]) -> pl.DataFrame:
        """What was asked for of some prompts, with what is there of them unless it is known already: a pool."""
        asked, there = both
        if there is None:
            return asked.drop("extra").with_columns(left_out=self._left_out(asked))
        if self.may_repeat:
            # Of a selection and the scores beside it, the selection; of what was written twice, the last.
            asked = asked.unique("candidate_id", keep="first" if self._beside else "last", maintain_order=True)
        rows = self._joined(asked, there.drop("prompt_id", strict=False))
        self._refuse_orphans(rows)
        if self._beside:
            of_beside = pl.col("sampler").is_in(self._beside)
            unscored = there.filter(of_beside).join(asked, on="candidate_id", how="anti")
            rows = pl.concat([rows.filter(~pl.col("extra") | of_beside), unscored], how="diagonal")
        if self._wanted is not None:
            rows = rows.filter(pl.col("sampler").is_in(list(self._wanted)))
        return rows.drop("extra", "refuses", strict=False).with_columns(left_out=self._left_out(rows))

    def _joined(self, asked: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
        """What was asked for, with what is known of it, in its order."""
        if in_step(asked, known):
            return pl.concat([asked, known.drop("candidate_id", strict=False)], how="horizontal")
        rows = asked.join(known, on="candidate_id", how="left", maintain_order="left")
        if rows.height == asked.height:
            return rows
        # Two samplers drew by the same law.
        first = known.sort(
            pl.col("sampler").replace_strict(self._samplers, range(len(self._samplers))), maintain_order=True
        )
        once = first.unique("candidate_id", keep="first", maintain_order=True)
        return asked.join(once, on="candidate_id", how="left", maintain_order="left")

    def _left_out(self, rows: pl.DataFrame) -> pl.Expr:
        """The first reason for which a row takes no part, or null."""
        reasons = {}
        if self.source.table.name != "comparisons":
            reasons["no_score"] = ~is_score("score")
            if self._beside:
                reasons["no_score"] &= ~pl.col("sampler").is_in(self._beside)
        if self._fitting is not None:
            reasons["where"] = ~pl.lit(pl.Series(among(self._fitting, leading_bits(rows["candidate_id"]))))
        if self._phrases:
            reasons["refusal"] = pl.col("refuses")
        if self._spec.min_chars:
            reasons["too_short"] = pl.col("chars") < self._spec.min_chars
        if self._spec.max_chars is not None:
            reasons["too_long"] = pl.col("chars") > self._spec.max_chars
        if not reasons:
            return pl.lit(None, pl.String)
        found = rows.select(**reasons)
        if not any(found[reason].any() for reason in reasons):
            return pl.lit(None, pl.String)  # as a rule nobody is left out, and a column that says so takes memory
        return pl.coalesce(*(pl.when(found[reason]).then(pl.lit(reason)) for reason in reasons))

    def _refuse_orphans(self, rows: pl.DataFrame) -> None:
        if orphans := rows["sampler"].null_count():
            first = rows.filter(pl.col("sampler").is_null())["candidate_id"].sort()[0]
            raise InputError(
                f"{orphans} of {rows.height} rows of {self.source} name candidates that are not in {self._run} "
                f"(first: {first}). Run `{MADE_BY[self.source.table.name]}` again: it keeps what fits, and makes "
                "the rest."
            )


def in_step(asked: pl.DataFrame, known: pl.DataFrame) -> bool:
    """Whether what is known is of these candidates, row by row: they were scored in the order they were drawn.

    Where it has no candidate_id, that was asked before.
    """
    return asked.height == known.height and (
        "candidate_id" not in known.columns or bool((asked["candidate_id"] == known["candidate_id"]).all())
    )


def same_candidates(asked: pl.DataFrame, known: pl.DataFrame) -> bool:
    """Whether what is known is of these candidates and of no others, in whatever order; nobody is asked for twice."""
    return asked.height == known.height and bool(asked["candidate_id"].is_in(known["candidate_id"].implode()).all())


def is_score(column: str) -> pl.Expr:
    """Whether a column holds a number that can be reckoned with; never null."""
    return (pl.col(column).is_finite() & (pl.col(column).abs() <= LARGEST_SCORE)).fill_null(False)


def scorer_of(source: Partition) -> str:
    """The scorer behind a source's scores; "" where there are none."""
    if source.table.name == "scores":
        return source.name
    lineage = source.lineage()
    return str(lineage.spec.get("scorer") or "") if lineage and source.table.name == "selections" else ""


def as_it_lies(run: Run, spec: PoolSpec, source: Partition) -> dict[str, str]:
    """How everything lies on disk that decides what pools hold: the source, the candidates, what conditions ask.

    Raises:
        UsageError: a file that holds no phrases.
    """
    scorer = scorer_of(source)
    read = [source, *run.partitions("candidates")]
    if spec.where is not None:
        read += [*run.partitions("prompts"), *([run.partition("scores", scorer)] if scorer else [])]
    if source.table.name == "selections" and scorer:
        read.append(run.partition("scores", scorer))
    phrases = {"refusals": digest(_phrases(spec))} if spec.refusals == "drop" else {}
    return {str(partition): partition.as_it_lies() for partition in read} | phrases


def _fitting(run: Run, condition: str, scorer: str) -> pl.Series:
    """The ids of the candidates for which a condition holds, on columns of candidates, scores and prompts."""
    tables = {"candidates": run.all("candidates", partial=True), "prompts": run.all("prompts", partial=True)}
    joined = "candidates left join prompts using (prompt_id)"
    if scorer:
        tables["scores"] = [run.partition("scores", scorer)]
        joined = "candidates join scores using (candidate_id, prompt_id) left join prompts using (prompt_id)"
    return matching(tables, "candidate_id", joined, condition)


def _phrases(spec: PoolSpec) -> list[str]:
    name = spec.refusal_phrases or "phrases"
    phrases = read_template("refusals", name)
    if not isinstance(phrases, list) or not phrases or not all(isinstance(one, str) and one for one in phrases):
        raise UsageError(f"{name} should hold a list of phrases; templates/refusals/phrases.yaml is one to copy.")
    return [phrase.replace("’", "'").lower() for phrase in phrases]
