"""The rows to export, each with its prompt and its responses, in the order of their keys.

One query joins and sorts them, within a fixed amount of memory, and they come in batches. Keys are hashes, so that
their order is random and the same whatever the order in which rows were made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.errors import InputError
from prefdata.exports.notation import KEYS, message_type, struct
from prefdata.sql.session import Session
from prefdata.storage.queries import chosen_samplers, duckdb_views
from prefdata.storage.run import MADE_BY, Partition, Run
from prefdata.storage.schemas import TYPES

BATCH_ROWS = 16_384

TURNS = pl.List(message_type())
"""A response, or a prompt: messages."""

_PRESENT = {
    "system": "messages[1].role = 'system'",
    "history": "len(messages) > 2 and len(messages) - (messages[1].role = 'system')::integer > 1",
}
"""How SQL says that a row has a part, where it is no column."""

_SIDES = {"pairs": ("chosen", "rejected")}


@dataclass(frozen=True)
class JoinedRows:
    """The rows of one table, or of the prompts of all sources."""

    run: Run
    source: Sequence[Partition]

    @property
    def table(self) -> str:
        """The table's name."""
        return self.source[0].table.name

    @cached_property
    def used(self) -> frozenset[str]:
        """The keys that messages have beside role and content, as the files' own statistics tell."""
        parts = [part for prompts in self.run.partitions("prompts") for part in prompts.checked_parts()]
        keys = {key for part in parts for key in KEYS if _has_values(part, f"messages.list.element.{key}")}
        if self.table != "prompts" and self._messages_of_responses:
            keys |= {"tool_calls", "reasoning_content", "name", "tool_call_id"}
        return frozenset(keys)

    @cached_property
    def _messages_of_responses(self) -> bool:
        parts = [part for sampler in self.run.partitions("candidates") for part in sampler.checked_parts()]
        return any(_has_values(part, "message") for part in parts)

    def samplers(self, session: Session) -> list[str]:
        """The samplers whose responses are in the rows."""
        if self.table == "prompts":
            return []
        ids = {"pairs": "unnest([chosen_id, rejected_id])", "groups": "unnest(candidate_ids)"}.get(
            self.table, "candidate_id"
        )
        query = f"""select distinct sampler from {self._candidates("sampler")}
                    where candidate_id in (select {ids} from ({self._rows})) order by sampler"""
        return [name for (name,) in session.run(lambda one: one.execute(query).fetchall())]

    def counts(self, session: Session) -> dict[str, int]:
        """How many rows each split has.

        Raises:
            InputError: a row names a prompt or a candidate that the run does not hold.
        """
        self._refuse_lost(session)
        with_split = "" if self.table == "prompts" else f"join {self._prompts('split')} p using (prompt_id)"
        query = f"select split, count(*) from ({self._rows}) t {with_split} group by all order by 1 desc"
        return dict(session.run(lambda one: one.execute(query).fetchall()))

    def left_out(self, session: Session) -> dict[str, int]:
        """How many rows of the table are not exported, and why: ties, and all but the best of each prompt."""
        reason = {"pairs": "tie", "selections": "not_the_best"}.get(self.table)
        if reason is None:
            return {}
        query = f"select (select count(*) from {self.table}) - (select count(*) from ({self._rows}))"
        ((count,),) = session.run(lambda one: one.execute(query).fetchall())
        return {reason: count}

    def present(self, session: Session, parts: Sequence[str]) -> set[str]:
        """Which of these parts any row has."""
        if not parts:
            return set()
        prompt = (
            "" if self.table == "prompts" else f"join {self._prompts('messages, tools, reference')} p using (prompt_id)"
        )
        seen = ", ".join(f"count_if({_PRESENT.get(part, f'{part} is not null')})" for part in parts)
        query = f"select {seen} from ({self._rows}) t {prompt}"
        (found,) = session.run(lambda one: one.execute(query).fetchall())
        return {part for part, count in zip(parts, found, strict=True) if count}

    def session(self, spill: Path) -> Any:
        """A connection with the tables that the rows are made from."""
        tables = {"prompts": self.run.all("prompts", partial=True), self.table: list(self.source)}
        if self.table != "prompts":
            tables["candidates"] = chosen_samplers(self.run)
        return duckdb_views(tables, spill)

    def batches(self, session: Session) -> Iterator[pl.DataFrame]:
        """The rows: the table's columns, the prompt's, and the responses as lists of messages."""
        query = self._sql()
        for batch in session.batches(lambda one: one.sql(query).to_arrow_reader(BATCH_ROWS)):
            yield self._frame(batch)

    @property
    def _rows(self) -> str:
        """What of the table is exported: no tie as a preference, and of a selection the best of each prompt."""
        if self.table == "pairs":
            return "select * from pairs where verdict <> 'tie'"
        if self.table == "selections":
            return """select * from selections
                      qualify row_number() over (partition by prompt_id order by score desc, rank) = 1"""
        return self._prompts("*") if self.table == "prompts" else f"select * from {self.table}"

    def _prompts(self, columns: str) -> str:
        """The prompts, each once: of several sources the first reference and tags that there are."""
        if len(self.run.partitions("prompts")) == 1:
            return f"(select prompt_id, {columns} from prompts)" if columns != "*" else "select * from prompts"
        place = "lpad(coalesce(source_number, 0)::varchar, 10, '0') || source"
        every = f"""select prompt_id, arg_min(messages, {place}) as messages, arg_min(tools, {place}) as tools,
            arg_min(split, {place}) as split, arg_min(reference, {place}) filter (reference is not null) as reference,
            coalesce(arg_min(tags, {place}) filter (len(tags) > 0), []) as tags
            from prompts group by prompt_id"""
        return f"(select prompt_id, {columns} from ({every}))" if columns != "*" else every

    def _candidates(self, columns: str) -> str:
        """The candidates, each once: that of the first sampler that has it."""
        names = columns.split(", ")
        if len(self.run.partitions("candidates")) == 1:
            return f"(select candidate_id, {columns} from candidates)"
        each = ", ".join(f"arg_min({name}, sampler) as {name}" for name in names)
        return f"(select candidate_id, {each} from candidates group by candidate_id)"

    def _refuse_lost(self, session: Session) -> None:
        if self.table == "prompts":
            return
        key = self.source[0].table.key[0]
        ids = {"pairs": "[chosen_id, rejected_id]", "groups": "candidate_ids"}.get(self.table, "[candidate_id]")
        query = f"""with each as (select {key} as id, prompt_id, unnest({ids}) as candidate_id from ({self._rows}))
                    select count(distinct id), min(id) from each
                    where prompt_id not in (select prompt_id from prompts)
                       or candidate_id not in (select candidate_id from candidates)"""
        ((lost, first),) = session.run(lambda one: one.execute(query).fetchall())
        if lost:
            ((rows,),) = session.run(lambda one: one.execute(f"select count(*) from ({self._rows})").fetchall())
            raise InputError(
                f"{lost} of {rows} rows of {self.source[0]} name a prompt or a candidate that {self.run} does not hold "
                f"(first: {first}). Run `{MADE_BY[self.table]}` again."
            )

    def _sql(self) -> str:
        if self.table == "prompts":
            return f"select * from ({self._rows}) order by prompt_id"
        prompts = self._prompts("messages, tools, split, reference")
        texts = self._candidates("text, message")
        # A prompt's pairs stay together; its labels do not: KTO takes each one's neighbour for another prompt's.
        key = ", ".join((["prompt_id"] if self.table == "pairs" else []) + list(self.source[0].table.key))
        if self.table == "groups":
            return f"""with each as (select prompt_id, unnest(candidate_ids) as candidate_id,
                                            generate_subscripts(candidate_ids, 1) as i from groups),
                said as (select prompt_id, list(text order by i) as text, list(message order by i) as message
                         from each join {texts} using (candidate_id) group by prompt_id)
                select t.*, p.* exclude (prompt_id), said.* exclude (prompt_id)
                from groups t join {prompts} p using (prompt_id) join said using (prompt_id) order by {key}"""
        if self.table == "pairs":
            return f"""select t.*, p.* exclude (prompt_id), c.text as chosen_text, c.message as chosen_message,
                              r.text as rejected_text, r.message as rejected_message
                       from ({self._rows}) t join {prompts} p using (prompt_id)
                       join {texts} c on c.candidate_id = chosen_id
                       join {texts} r on r.candidate_id = rejected_id order by {key}"""
        return f"""select t.*, p.* exclude (prompt_id), c.text as response_text, c.message as response_message
                   from ({self._rows}) t join {prompts} p using (prompt_id)
                   join {texts} c using (candidate_id) order by {key}"""

    def _frame(self, batch: pa.RecordBatch) -> pl.DataFrame:
        """A batch with its responses as messages; a response that the prompt has begun is whole."""
        table = pa.Table.from_batches([batch])
        place = table.column_names.index("messages")
        table = table.set_column(place, "messages", table["messages"].cast(TYPES["messages"]))
        rows = pl.DataFrame(table).rename({"messages": "prompt"}).with_columns(_row=pl.int_range(pl.len()))
        if self.table == "prompts":
            return rows
        if "prefill" in self.used:
            last = pl.col("prompt").list.last()
            begun = pl.when(last.struct.field("prefill")).then(last.struct.field("content"))
            rows = rows.with_columns(begun=begun)
            rows = rows.with_columns(
                prompt=pl.when(pl.col("begun").is_null())
                .then("prompt")
                .otherwise(pl.col("prompt").list.head(pl.col("prompt").list.len() - 1))
            )
        else:
            rows = rows.with_columns(begun=pl.lit(None, pl.String))
        return self._with_groups(rows) if self.table == "groups" else self._with_responses(rows)

    def _with_responses(self, rows: pl.DataFrame) -> pl.DataFrame:
        for name in _SIDES.get(self.table, ("response",)):
            texts, messages = rows[f"{name}_text"], rows[f"{name}_message"]
            rows = rows.with_columns(_turns(texts, messages, rows["begun"]).alias(name)).drop(texts.name, messages.name)
        if self.table == "pairs":
            swapped = pl.col("pair_id").str.head(1).is_in(list("89abcdef"))
            rows = rows.with_columns(
                first=pl.when(swapped).then("rejected").otherwise("chosen"),
                second=pl.when(swapped).then("chosen").otherwise("rejected"),
                better=swapped.cast(pl.Int32),
            )
        return rows

    @staticmethod
    def _with_groups(rows: pl.DataFrame) -> pl.DataFrame:
        each = rows.select("_row", "begun", "text", "message").explode("text", "message")
        response = _turns(each["text"], each["message"], each["begun"]).alias("response")
        lists = each.select("_row", response).group_by("_row", maintain_order=True).agg("response")["response"]
        scores = pl.coalesce("scores", pl.col("ranks").list.eval(pl.lit(None, pl.Float64)))
        return rows.with_columns(
            lists,
            score=scores,
            rank=pl.col("ranks"),
            place=pl.col("ranks").list.eval(pl.element() - 1),
            candidate_id=pl.col("candidate_ids"),
        ).drop("text", "message")


def _turns(texts: pl.Series, messages: pl.Series, begun: pl.Series) -> pl.Series:
    """Responses as lists of messages, from their texts, or their messages as JSON where they are more than text."""
    types = {field.name: field.dtype for field in TURNS.inner.fields}  # type: ignore[union-attr]
    nulls = {name: pl.lit(None, kind) for name, kind in types.items() if name not in ("role", "content")}
    content = pl.concat_str(pl.col("begun").fill_null(""), "text")
    plain = pl.concat_list(struct({"role": pl.lit("assistant"), "content": content, **nulls}))
    rows = pl.DataFrame({"text": texts, "message": messages, "begun": begun})
    rows = rows.with_columns(plain.cast(TURNS).alias("turns"))
    if messages.null_count() == len(messages):
        return rows["turns"]
    said = [None if one is None else _read(one, start) for one, start in zip(messages, begun, strict=True)]
    return rows.select(pl.coalesce(pl.Series("said", said, dtype=TURNS), "turns")).to_series()


def _read(message: str, begun: str | None) -> list[dict[str, Any]]:
    """A response's messages from JSON, their calls as text."""
    found = json.loads(message)
    turns = [dict(turn) for turn in (found if isinstance(found, list) else [found])]
    for turn in turns:
        turn.setdefault("role", "assistant")
        if isinstance(calls := turn.get("tool_calls"), list):
            turn["tool_calls"] = json.dumps(calls, ensure_ascii=False)
    turns[0]["content"] = f"{begun or ''}{turns[0].get('content') or ''}"
    return turns


def _has_values(part: Path, column: str) -> bool:
    """Whether any value of a part's column is not null; a column that is not there has none."""
    with pq.ParquetFile(part) as file:
        places = [n for n in range(len(file.schema)) if file.schema.column(n).path == column]
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        found = [group.column(place) for group in groups for place in places]
        return any(one.statistics is None or one.statistics.null_count < one.num_values for one in found)
