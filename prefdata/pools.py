"""Pools: scored candidates with all that a decision about them needs, some prompts at a time.

What select and pair read. A pool holds all rows of its prompts; pools come in the order of the prompts' ids, so that
what is made from them one by one is in that order however many there were. Rows are cut into pools by the first digits
of their prompt's id and wait on disk, so that memory does not grow with the run: a million rows at a time are held.

A pool is a frame with the columns

    candidate_id, prompt_id, score                     of the source: scores, or a selection (then also draws)
    sampler, sample_index, round, finish_reason        of the candidate
    text_key      a hash of its text with runs of white space as one: equal keys, equal answers
    chars         characters of its text without surrounding white space; 0 is an empty answer
    left_out      why it takes no part (one of REASONS), or null

and `text` where it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefdata.ahead import ahead, cores
from prefdata.draws import Bits, Content, leading_bits
from prefdata.errors import InputError, UsageError
from prefdata.ids import digest
from prefdata.shelves import Shelves, how_many_shares, shelf_room
from prefdata.specs import PoolSpec
from prefdata.store import MADE_BY, Partition, Run
from prefdata.tables import TABLES
from prefdata.template_files import read_template
from prefdata.views import WHITESPACE, chosen_samplers, matching

POOL_ROWS = 1_000_000
"""Rows of a pool, about: what is held at a time."""

REFUSAL_CHARS = 120
"""How far into an answer the phrases of a refusal are looked for."""

REASONS = ("no_score", "where", "refusal", "too_short", "too_long")
"""Why a row takes no part, in the order in which they are looked for."""

_SPACES = f"[{WHITESPACE}]+"
_ODD_SPACES = f"[{WHITESPACE}]{{2}}|[{WHITESPACE.replace(' ', '')}]"
_ASKED = pl.DataFrame(
    schema={
        "candidate_id": pl.String,
        "prompt_id": pl.String,
        "score": pl.Float64,
        "draws": pl.Int32,
        "extra": pl.Boolean,
    }
)
_CANDIDATE = ["candidate_id", "prompt_id", "sample_index", "round", "finish_reason"]


@dataclass(frozen=True)
class Pools:
    """Pools that are ready to be read, once or several times.

    `scorer` stands behind the scores ("" where there are none), `parents` names the rows by content, `latest_round` is
    the last that any row that takes part is of (None where none does).
    """

    scorer: str
    parents: dict[str, str]
    latest_round: int | None
    _shelves: Shelves

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for share in range(self._shelves.shares):
            pool = self._shelves.share(share)
            if pool.height:
                yield pool

    def whole(self) -> pl.DataFrame:
        """All pools as one: for a few prompts; without rows where there are none."""
        return pl.concat([self._shelves.share(share) for share in range(self._shelves.shares)])


@contextmanager
def open_pools(
    run: Run,
    spec: PoolSpec,
    source: Partition,
    *,
    beside: tuple[str, ...] = (),
    texts: bool = False,
    prompt_id: str | None = None,
) -> Iterator[Pools]:
    """The candidates that `source` names, a partition of scores, selections or comparisons, as pools.

    `beside` names samplers whose candidates come in although the source does not name them: with the score that the
    source's scorer gave, or null. `texts` adds the column `text`. With `prompt_id` only that prompt's.

    Raises:
        InputError: the source names candidates that the run does not hold.
        UsageError: an unknown sampler, or a condition that DuckDB does not take.
    """
    wanted = {one.path for one in chosen_samplers(run, (*spec.sampler, *beside))}
    # Those asked for first: where two samplers drew by the same law, a candidate is the first one's.
    samplers = sorted(chosen_samplers(run), key=lambda one: one.path not in wanted)
    scorer = _scorer(source)
    named = [(source, part, False) for part in source.readable()]
    if beside and source.table.name == "selections" and scorer:
        scores = run.partition("scores", scorer)
        named += [(scores, part, True) for part in scores.readable()]
    rows = max(_rows(part for _, part, _ in named), _rows(part for one in samplers for part in one.readable()))
    joining = _Joining(run, spec, source, scorer, beside, texts)
    nothing_known = joining.known("", pl.DataFrame(TABLES["candidates"].empty()))
    with shelf_room(run) as room, ExitStack() as stack:
        shares = how_many_shares(rows, POOL_ROWS)
        asked = Shelves(room / "asked", shares, _ASKED)
        there = Shelves(room / "there", shares, nothing_known)
        pools = Shelves(room / "pools", shares, joining.join((_ASKED, nothing_known)))
        for shelves in (asked, there, pools):
            stack.callback(shelves.close)
        for some in ahead(named, _asked, cores()):
            asked.put(_of(prompt_id, some))
        drawn = [(sampler.name, part) for sampler in samplers for part in sampler.readable()]
        for some in ahead(drawn, joining.candidates, cores()):
            there.put(_of(prompt_id, some))
        content, rounds = _RowsAndReasons(), set[int]()
        both = ((asked.take(share), there.take(share)) for share in range(shares))
        for share, pool in enumerate(ahead(both, joining.join, cores())):
            content.add(pool)
            rounds.update(pool.select(pl.col("round").filter(pl.col("left_out").is_null())).to_series().unique())
            pools.put_in(share, pool)
        yield Pools(scorer, {str(source): content.id}, max(rounds, default=None), pools)


class _RowsAndReasons:
    """The id of the rows of pools and of why some take no part: those hang on prompts and on files as well."""

    def __init__(self) -> None:
        self._rows, self._out = Content(), Content()

    def add(self, pool: pl.DataFrame) -> None:
        self._rows.add(pool["candidate_id"], pool["score"])
        out = pool.select("candidate_id", "left_out").drop_nulls()
        self._out.add(out["candidate_id"], out["left_out"].replace_strict(REASONS, range(len(REASONS))))

    @property
    def id(self) -> str:
        return digest([self._rows.id, self._out.id])


class _Joining:
    """How the candidates that a source names find what is known of them."""

    def __init__(
        self, run: Run, spec: PoolSpec, source: Partition, scorer: str, beside: tuple[str, ...], texts: bool
    ) -> None:
        self._run, self._spec, self._source, self._beside, self._texts = run, spec, source, beside, texts
        self._wanted = {*spec.sampler, *beside} if spec.sampler else None
        self._fitting = None if spec.where is None else np.sort(leading_bits(_fitting(run, spec.where, scorer)))
        self._phrases = _phrases(spec) if spec.refusals == "drop" else []
        # A source that was stopped in the middle, or that names one candidate in many rows, may have rows twice.
        self._repeats = source.state != "finished" or source.table.name == "comparisons" or bool(beside)

    def candidates(self, drawn: tuple[str, Path]) -> pl.DataFrame:
        """What is known of the candidates of a sampler's part; texts that nobody asks for are not read."""
        sampler, part = drawn
        used = self._wanted is None or sampler in self._wanted
        columns = [*_CANDIDATE, *(["text"] if used else [])]
        return self.known(sampler, pl.read_parquet(part, columns=columns, hive_partitioning=False))

    def known(self, sampler: str, rows: pl.DataFrame) -> pl.DataFrame:
        """What is known of candidates; their texts become keys and lengths."""
        texts = rows["text"].fill_null("") if "text" in rows.columns else _blanks(rows.height)
        plain = texts.str.strip_chars(WHITESPACE)
        more = {"text": texts} if self._texts else {}
        return rows.select(_CANDIDATE).with_columns(
            **more,
            sampler=pl.lit(sampler),
            text_key=_one_spaced(plain).hash(),
            chars=plain.str.len_chars(),
            refuses=self._refuses(plain),
        )

    def _refuses(self, texts: pl.Series) -> pl.Series | pl.Expr:
        if not self._phrases:
            return pl.lit(False)
        start = texts.str.head(REFUSAL_CHARS).str.replace_all("’", "'", literal=True)
        return start.str.contains_any(self._phrases, ascii_case_insensitive=True)

    def join(self, both: tuple[pl.DataFrame, pl.DataFrame]) -> pl.DataFrame:
        """What was asked for of a share, with what is there."""
        asked, there = both
        if self._repeats:
            # Of a selection and the scores beside it, the selection; of what was written twice, the last.
            asked = asked.unique("candidate_id", keep="first" if self._beside else "last", maintain_order=True)
        rows = _joined(asked, there.drop("prompt_id"))
        self._refuse_orphans(rows)
        if self._beside:
            of_beside = pl.col("sampler").is_in(self._beside)
            unscored = there.filter(of_beside).join(asked, on="candidate_id", how="anti")
            rows = pl.concat([rows.filter(~pl.col("extra") | of_beside), unscored], how="diagonal")
        if self._wanted is not None:
            rows = rows.filter(pl.col("sampler").is_in(list(self._wanted)))
        return rows.with_columns(left_out=self._left_out(rows)).drop("extra", "refuses")

    def _left_out(self, rows: pl.DataFrame) -> pl.Expr:
        """The first reason for which a row takes no part, or null."""
        needs_score = ~pl.col("sampler").is_in(self._beside) & (self._source.table.name != "comparisons")
        reasons = {"no_score": needs_score & ~pl.col("score").is_finite().fill_null(False)}
        if self._fitting is not None:
            reasons["where"] = ~pl.lit(pl.Series(_among(self._fitting, leading_bits(rows["candidate_id"]))))
        reasons["refusal"] = pl.col("refuses")
        reasons["too_short"] = pl.col("chars") < self._spec.min_chars
        reasons["too_long"] = pl.col("chars") > (self._spec.max_chars or 2**31)
        return pl.coalesce(*(pl.when(holds).then(pl.lit(reason)) for reason, holds in reasons.items()))

    def _refuse_orphans(self, rows: pl.DataFrame) -> None:
        if orphans := rows["sampler"].null_count():
            first = rows.filter(pl.col("sampler").is_null())["candidate_id"].sort()[0]
            raise InputError(
                f"{orphans} of {rows.height} rows of {self._source} name candidates that are not in {self._run} "
                f"(first: {first}). Run `{MADE_BY[self._source.table.name]}` again: it keeps what fits, and makes "
                "the rest."
            )


def _joined(asked: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """What was asked for, with what is known of it, in its order."""
    if asked.height == known.height and (asked["candidate_id"] == known["candidate_id"]).all():
        return pl.concat([asked, known.drop("candidate_id")], how="horizontal")  # scored in the order they were drawn
    rows = asked.join(known, on="candidate_id", how="left", maintain_order="left")
    if rows.height == asked.height:
        return rows
    once = known.unique("candidate_id", keep="first", maintain_order=True)  # two samplers drew by the same law
    return asked.join(once, on="candidate_id", how="left", maintain_order="left")


def _among(many: Bits, some: Bits) -> NDArray[np.bool_]:
    """Whether each of `some` is among `many`, which are sorted once for all pools."""
    found = np.zeros(len(some), bool)
    order = np.argsort(some)  # neighbours are looked for one after the other: many times faster
    some = some[order]
    place = np.searchsorted(many, some)
    there = place < len(many)
    found[order[there]] = many[place[there]] == some[there]
    return found


def _blanks(rows: int) -> pl.Series:
    return pl.repeat("", rows, eager=True)


def _one_spaced(texts: pl.Series) -> pl.Series:
    """Texts with each run of white space as one space; few have any, and only those are written anew."""
    odd = texts.str.contains(_ODD_SPACES).arg_true()
    if not len(odd):
        return texts
    return texts.clone().scatter(odd, texts.gather(odd).str.replace_all(_SPACES, " "))


def _asked(named: tuple[Partition, Path, bool]) -> pl.DataFrame:
    """The candidates that a part names: candidate_id, prompt_id, score, draws, and whether they are extra."""
    source, part, extra = named
    none = {"score": pl.lit(None, pl.Float64), "draws": pl.lit(None, pl.Int32)}
    if source.table.name == "comparisons":
        both = pl.read_parquet(part, columns=["first_id", "second_id", "prompt_id"], hive_partitioning=False)
        sides = [both.select("prompt_id", candidate_id=side) for side in ("first_id", "second_id")]
        rows = pl.concat(sides).unique("candidate_id", maintain_order=True).with_columns(**none)
    else:
        draws = [] if source.table.name == "scores" else ["draws"]
        columns = ["candidate_id", "prompt_id", "score", *draws]
        rows = pl.read_parquet(part, columns=columns, hive_partitioning=False)
        rows = rows if draws else rows.with_columns(draws=none["draws"])
    return rows.select("candidate_id", "prompt_id", "score", "draws", extra=pl.lit(extra))


def _of(prompt_id: str | None, rows: pl.DataFrame) -> pl.DataFrame:
    return rows if prompt_id is None else rows.filter(pl.col("prompt_id") == prompt_id)


def _scorer(source: Partition) -> str:
    """The scorer behind a source's scores; "" where there are none."""
    if source.table.name == "scores":
        return source.name
    lineage = source.lineage()
    return str(lineage.spec.get("scorer") or "") if lineage and source.table.name == "selections" else ""


def _rows(parts: Iterable[Path]) -> int:
    return sum(pq.read_metadata(part).num_rows for part in parts)


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
    return [phrase.replace("’", "'") for phrase in phrases]
