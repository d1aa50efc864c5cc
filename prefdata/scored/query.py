"""The query for scored candidates whose rows have to be sorted by prompt, or joined with other tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from prefdata.errors import InputError
from prefdata.storage.queries import duckdb_views, sql_text
from prefdata.storage.run import MADE_BY, Partition, Run
from prefdata.storage.schemas import SCORES

COLUMNS = ["candidate_id", "prompt_id", "score", "draws", *SCORES.copied]
"""What is read of each candidate."""

_COPIED = ", ".join(SCORES.copied)


@dataclass(frozen=True)
class ScoredQuery:
    """What is asked of a source of scored candidates.

    Attributes:
        source: scores, a selection, comparisons, or a sampler, which stands for all samplers without scores.
        scorer: whose scores these are; "" where there are none.
        samplers: all samplers of the run.
        renamed: samplers whose name a candidate gets if they hold it, whichever sampler the source names.
        extra: samplers whose candidates are added although the source does not name them, with the scorer's score.
        texts: whether to read texts as well.
        prompt_id: the only prompt to read; all where it is None.
    """

    run: Run
    source: Partition
    scorer: str
    samplers: Sequence[Partition]
    renamed: Sequence[str] = ()
    extra: Sequence[str] = ()
    texts: bool = False
    prompt_id: str | None = None

    @property
    def reads_candidates(self) -> bool:
        """Whether what the source says is not enough."""
        return bool(self.source.table.name in ("comparisons", "candidates") or self.renamed or self.extra or self.texts)

    @property
    def may_repeat(self) -> bool:
        """Whether a candidate may come several times: in an unfinished table, or where two samplers hold it."""
        return self.source.state != "finished" or self.reads_candidates

    @property
    def is_scan(self) -> bool:
        """Whether the files hold what is asked for, row by row."""
        return self.prompt_id is None and not self.may_repeat

    def orphan(self, candidate_id: str) -> InputError:
        """Return the error for a candidate that the source names and the run does not hold."""
        return InputError(
            f"{self.source} names candidates that are not in {self.run} (first: {candidate_id}). Run "
            f"`{MADE_BY[self.source.table.name]}` again: it keeps what fits, and makes the rest."
        )

    def read(self, spill: Path, rows: int) -> Iterator[pl.DataFrame]:
        """Yield the rows by prompt, each prompt's by sample_index and candidate_id, in batches of about a given size.

        Of a candidate that comes several times, the first row counts: what was written last.
        """
        tables = {self.source.table.name: [self.source]}
        if self.reads_candidates:
            tables["candidates"] = list(self.samplers)
        if self.extra and self._selected:
            tables["scores"] = [self.run.partition("scores", self.scorer)]
        with duckdb_views(tables, spill) as session:
            for batch in session.batches(lambda connection: connection.sql(self._sql()).to_arrow_reader(rows)):
                yield pl.DataFrame(batch)

    @property
    def _selected(self) -> bool:
        return self.source.table.name == "selections"

    def _sql(self) -> str:
        rows = self._source()
        if self.renamed:
            rows = f"""select r.* replace (coalesce(x.sampler, r.sampler) as sampler) from ({rows}) r
                       left join {self._of(self.renamed)} x using (candidate_id)"""
        if self.extra:
            rows = self._with_extra(rows)
        columns = ", ".join(f"r.{name}" for name in COLUMNS)
        if self.texts:
            columns += ", c.text"
            rows = f"({rows}) r left join {self._only('candidates')} c using (candidate_id, sampler)"
        else:
            rows = f"({rows}) r"
        return (
            f"select {columns} from {rows} order by r.prompt_id, r.sample_index, candidate_id, r.place desc, r.sampler"
        )

    def _source(self) -> str:
        """Return the SQL for the source's rows; `place` puts the last written first, where rows may be duplicated."""
        table = self.source.table.name
        if table == "comparisons":
            copied = ", ".join(f"c.{name}" for name in SCORES.copied)
            sides = " union ".join(
                f"select {side}_id as candidate_id, prompt_id from {self._only(table)}" for side in ("first", "second")
            )
            return f"""select p.*, null::double as score, null::integer as draws, {copied}, 0 as place
                       from ({sides}) p left join {self._only("candidates")} c using (candidate_id)"""
        if table == "candidates":
            columns = f"candidate_id, prompt_id, null::double as score, null::integer as draws, {_COPIED}, 0 as place"
            return f"select {columns} from {self._only(table)}"
        draws = "draws" if self._selected else "null::integer as draws"
        place = "0" if self.source.state == "finished" else "row_number() over ()"
        columns = f"candidate_id, prompt_id, score, {draws}, {_COPIED}, {place} as place"
        return f"select {columns} from {self._only(table)}"

    def _with_extra(self, rows: str) -> str:
        """Return the SQL for the rows and the candidates of the extra samplers, with their scores for a selection."""
        extra = f"{self._of(self.extra)} e"
        score = "null::double"
        if self._selected:
            extra, score = f"{extra} left join {self._only('scores')} s using (candidate_id)", "s.score"
        copied = ", ".join(f"e.{name}" for name in ("candidate_id", "prompt_id", *SCORES.copied))
        rest = [name for name in ("prompt_id", *SCORES.copied) if name != "sampler"]
        either = ", ".join(f"coalesce(r.{name}, x.{name}) as {name}" for name in rest)
        return f"""select candidate_id, {either}, coalesce(x.sampler, r.sampler) as sampler,
                          coalesce(r.score, x.score) as score, r.draws, coalesce(r.place, 0) as place
                   from ({rows}) r full join (select {copied}, {score} as score from {extra}) x using (candidate_id)"""

    def _of(self, samplers: Sequence[str]) -> str:
        names = ", ".join(map(sql_text, samplers))
        return f"(select * from {self._only('candidates')} where sampler in ({names}))"

    def _only(self, table: str) -> str:
        """Return a table, or its rows for the only prompt that is requested."""
        which = "" if self.prompt_id is None else f" where prompt_id = {sql_text(self.prompt_id)}"
        return f"(select * from {table}{which})"
