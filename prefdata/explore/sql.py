"""sql: questions to a run, answered by DuckDB on the Parquet files as they lie.

One view a table, with its partition key as a column, and two that join what is asked for together most:

- `answers`: a row a candidate and score: the prompt's text, the answer, sampler, scorer, score.
- `preferences`: a row a pair: the prompt's text, both answers, both scores, both samplers.

A prompt that stands in several sources is one there, the first source's; so is in `preferences` an answer that several
samplers drew by the same law.

A query can only read, and only inside the run directory.

SQL lets two columns have one name and a table does not: the later ones are numbered, as DuckDB does (`a`, `a_1`).
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from prefdata.errors import InputError, NotReady, UsageError
from prefdata.explore.status import existing
from prefdata.store import MADE_BY, Run
from prefdata.tables import TABLES
from prefdata.views import sql_text

_PROMPTS = "(select distinct on (prompt_id) * from prompts order by prompt_id, source)"
_CANDIDATES = "(select distinct on (candidate_id) * from candidates order by candidate_id, sampler)"

_JOINS = {
    "answers": (
        ("prompts", "candidates", "scores"),
        f"""select c.candidate_id, c.prompt_id, p.split, p.messages[-1].content as prompt, c.text, c.sampler, s.scorer,
                  s.score, s.reason, c.finish_reason, c.completion_tokens, c.logprob_sum, c.sample_index
           from candidates c join {_PROMPTS} p using (prompt_id) left join scores s using (candidate_id)""",
    ),
    "preferences": (
        ("prompts", "candidates", "pairs"),
        f"""select x.pair_id, x.pairing, x.prompt_id, p.split, p.messages[-1].content as prompt, c.text as chosen,
                  r.text as rejected, x.chosen_score, x.rejected_score, x.margin, x.probability,
                  c.sampler as chosen_sampler, r.sampler as rejected_sampler
           from pairs x join {_PROMPTS} p using (prompt_id)
           join {_CANDIDATES} c on c.candidate_id = x.chosen_id
           join {_CANDIDATES} r on r.candidate_id = x.rejected_id
           where x.verdict <> 'tie'""",
    ),
}

_AS_TEXT = ("bignum", "bit", "interval", "time with time zone", "uhugeint", "union", "variant")
"""DuckDB's types that Arrow, or those who read it, do not have: their values are given as DuckDB writes them."""


def query(run: Run, sql: str) -> pa.Table:
    """The answer to one SQL query over the run's tables.

    Raises:
        NotReady: it asks for a table that no step has made yet.
        UsageError: it is not a single query, or DuckDB refuses it.
    """
    with connect(run) as connection:
        return _query(connection, run, sql)


def tables(run: Run) -> pa.Table:
    """What can be asked: each view with its rows and columns."""
    with connect(run) as connection:
        views = "select view_name from duckdb_views() where not internal order by view_oid"
        names = [row[0] for row in connection.sql(views).fetchall()]
        described = [connection.sql(f'select * from "{name}" limit 0') for name in names]
        counts = [connection.sql(f'select count(*) from "{name}"').fetchall()[0][0] for name in names]
        return pa.table(
            {
                "view": pa.array(names, pa.string()),
                "rows": pa.array(counts, pa.int64()),
                "columns": pa.array([", ".join(view.columns) for view in described], pa.string()),
            }
        )


def connect(run: Run) -> duckdb.DuckDBPyConnection:
    """A connection with the run's views, confined to reading the run directory.

    Raises:
        NotReady: there is no run at that path.
        InputError: a part of a table is damaged.
    """
    existing(run)
    connection = duckdb.connect(":memory:")
    there = [name for name in TABLES if any(partition.parts() for partition in run.partitions(name))]
    for name in there:
        try:
            connection.execute(f"create view {name} as {_scan(run.path, name)}")
        except duckdb.Error as error:
            for partition in run.partitions(name):
                partition.readable()  # says which part is damaged, and what to do about it
            raise InputError(_first_lines(error)) from None
    for name, (needs, select) in _JOINS.items():
        if all(need in there for need in needs):
            connection.execute(f"create view {name} as {select}")
    # The pattern is held against the list as it is written, before it is expanded.
    folder = str(run.path.resolve())
    connection.execute(f"set allowed_directories = [{sql_text(folder)}, {sql_text(_glob_safe(folder))}]")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def _scan(run: Path, name: str) -> str:
    table = TABLES[name]
    pattern = sql_text(f"{_glob_safe(str(run.resolve()))}/{name}/{table.partition}=*/part-*.parquet")
    # The key as text: a sampler named 2024 is not a number.
    scan = f"read_parquet({pattern}, hive_partitioning = true, hive_types_autocast = false)"
    return f"select * from {scan}"


def _glob_safe(path: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _query(connection: duckdb.DuckDBPyConnection, run: Run, sql: str) -> pa.Table:
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type not in (
            duckdb.StatementType.SELECT,
            duckdb.StatementType.EXPLAIN,
        ):
            raise UsageError("give one query that reads (select …); a run is only changed by the steps.")
        answer = connection.sql(_without_end(statements[0].query))
        return _portable(answer).to_arrow_table().rename_columns(_numbered(answer.columns))
    except duckdb.CatalogException as error:
        for name in [*TABLES, *_JOINS]:
            if f"name {name} " in str(error):
                makers = _JOINS[name][0] if name in _JOINS else (name,)
                missing = next((m for m in makers if not run.partitions(m)), makers[0])
                raise NotReady(f"{run} has no {missing} yet: run `{MADE_BY[missing]} {run} …` first.") from None
        raise UsageError(_first_lines(error)) from None
    except duckdb.PermissionException as error:
        raise UsageError(f"a query reads only inside {run}: {_first_lines(error)}") from None
    except duckdb.IOException as error:
        raise InputError(_first_lines(error)) from None
    except duckdb.Error as error:
        raise UsageError(_first_lines(error)) from None


def _without_end(query: str) -> str:
    """A query without its semicolon and what comments stand after it: it is asked for inside another one."""
    text = query.encode()  # places are counted in bytes
    for place, kind in reversed(duckdb.tokenize(query)):
        if text[place : place + 1] == b";":
            return text[:place].decode()
        if kind != duckdb.token_type.comment:
            break
    return query


def _portable(answer: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """`answer` with text in the columns whose types are in `_AS_TEXT`, by themselves or inside a list or the like."""
    # Columns go by number: two of them may have one name.
    columns = (f"#{i}::varchar" if _as_text(kind) else f"#{i}" for i, kind in enumerate(answer.types, start=1))
    return answer.project(", ".join(columns))


def _as_text(kind: Any) -> bool:
    inside = kind.children if kind.id in ("array", "list", "map", "struct") else []
    # An array has its length there too.
    return kind.id in _AS_TEXT or any(_as_text(part) for _, part in inside if isinstance(part, type(kind)))


def _numbered(names: list[str]) -> list[str]:
    """`names`, each once: `a, a` is `a, a_1`."""
    given: list[str] = []
    for name in names:
        later = (f"{name}_{i}" for i in count(1))
        given.append(name if name not in given else next(new for new in later if new not in given and new not in names))
    return given


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())
