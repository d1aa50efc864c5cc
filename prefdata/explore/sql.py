"""sql: queries of a run, by DuckDB on its Parquet files.

One view per table, with its partition key as a column, and two that join what is most often queried together:

- `answers`: a row per candidate and score: the prompt's text, the response, sampler, scorer, score.
- `preferences`: a row per pair: the prompt's text, both responses, both scores, both samplers.

A prompt of several sources is one row there, the first source's; so is in `preferences` a response that several
samplers with the same settings drew.

A query only reads, and only the run (`sql_check`, `sql_session`). A file of the run is a table by its name:
`from 'RUN/curves/points.parquet'`.

SQL lets two columns have one name and a table does not: the later ones are numbered, as DuckDB does (`a`, `a_1`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from prefdata.errors import InputError, NotReady, PrefdataError, UsageError
from prefdata.explore.status import existing
from prefdata.sql.check import check_query, error_text
from prefdata.sql.files import file_url
from prefdata.sql.session import MEMORY_LIMIT, Session
from prefdata.storage.queries import add_view, sql_text
from prefdata.storage.run import MADE_BY, Run
from prefdata.storage.schemas import TABLES

_PROMPTS = "(select distinct on (prompt_id) * from prompts order by prompt_id, source_number nulls first, source)"
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
"""DuckDB's types that Arrow or its readers do not have: their values are given as DuckDB writes them."""

_BATCH_ROWS = 50_000


def query(run: Run, sql: str, *, memory_limit: str = MEMORY_LIMIT) -> pa.Table:
    """Return the rows of one SQL query over the run's tables.

    `memory_limit` (`4GB`, `50%` of the machine's) holds for DuckDB's work, and again for the rows that are returned.

    Raises:
        NotReady: it reads a table that no step has made yet.
        UsageError: it is not a single query that only reads, or DuckDB refuses it.
        PrefdataError: it needs more memory than the limit.
    """
    pieces, size = [], 0
    with _open(run, memory_limit, sql) as session:
        limit = session.memory_limit()
        for piece in _pieces(session, run, sql):
            pieces.append(piece)
            size += piece.nbytes
            if size > limit:
                raise PrefdataError(f"the rows need more memory than {memory_limit}: query fewer, or raise the limit.")
    return pa.concat_tables(pieces)


def stream(run: Run, sql: str, *, memory_limit: str = MEMORY_LIMIT) -> Iterator[pa.Table]:
    """Yield the rows of a query in tables of at most 50,000 rows, at least one, as they are computed.

    Raises:
        NotReady, UsageError, PrefdataError: as `query`; an error of a later row comes after the rows before it.
    """
    with _open(run, memory_limit, sql) as session:
        yield from _pieces(session, run, sql)


def tables(run: Run) -> pa.Table:
    """List the views with their rows and columns."""
    with _open(run, MEMORY_LIMIT) as session:
        return session.run(_tables)


def _tables(connection: duckdb.DuckDBPyConnection) -> pa.Table:
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


@contextmanager
def _open(run: Run, memory_limit: str, sql: str = "") -> Iterator[Session]:
    """Open a session with the run's views for a query, which reads nothing outside the run directory.

    Raises:
        NotReady: there is no run at that path.
        InputError: a part of a table is damaged or missing, or of another version of its contract.
    """
    existing(run)
    folders = _folders(run)
    with Session(lambda path: _is_in(path, folders), memory_limit) as session:
        session.run(lambda connection: _add_views(connection, run, sql))
        yield session


def _folders(run: Run) -> list[str]:
    """List the folders that a query may read: the run, and the targets of links that are its tables or partitions."""
    linked = [partition.path for table in TABLES for partition in run.partitions(table)]
    return sorted({os.path.realpath(path) for path in (run.path, *linked)})


def _is_in(path: str, folders: list[str]) -> bool:
    real = os.path.realpath(path)
    return any(real.startswith(f"{folder}{os.sep}") for folder in folders)


def _add_views(connection: duckdb.DuckDBPyConnection, run: Run, sql: str) -> None:
    """Make the views; the parts of the tables that a query names are compared with their checksums."""
    named = {name for name in (*TABLES, *_JOINS) if name in sql.lower()}
    named |= {name for join in named & _JOINS.keys() for name in _JOINS[join][0]}
    whole = Run(run.path.resolve())
    views = {
        name: [part for one in whole.partitions(name) for part, _ in one.parts_with_rows(sums=name in named)]
        for name in TABLES
    }
    there = [name for name, parts in views.items() if parts]
    for name in there:
        add_view(connection, name, views[name])
    for name, (needs, select) in _JOINS.items():
        if all(need in there for need in needs):
            connection.execute(f"create view {name} as {select}")


def _pieces(session: Session, run: Run, sql: str) -> Iterator[pa.Table]:
    with _explained(run):
        reader, names = session.run(lambda connection: _reader(connection, run, sql))
        first = True
        while (batch := session.run(lambda _: next(reader, None))) is not None or first:
            yield pa.Table.from_batches([] if batch is None else [batch], reader.schema).rename_columns(names)
            first = False


def _reader(connection: duckdb.DuckDBPyConnection, run: Run, sql: str) -> tuple[pa.RecordBatchReader, list[str]]:
    """Return the rows of a query, and the names of their columns."""
    checked = check_query(connection, sql)
    for name in checked.files:
        _add_file(connection, run, name)
    answer = connection.sql(checked.text)
    return _portable(answer).to_arrow_reader(_BATCH_ROWS), _numbered(answer.columns)


def _add_file(connection: duckdb.DuckDBPyConnection, run: Run, name: str) -> None:
    """Make a view of a file that a query reads as a table, under the name that it has there.

    Raises:
        UsageError: it is not in the run.
    """
    path, folder = Path(os.path.abspath(name)), Path(os.path.abspath(run.path))  # noqa: PTH100
    if not path.is_relative_to(folder):
        raise UsageError(f"a query reads only inside {run}, and {name} is outside.")
    inside = run.path.resolve() / path.relative_to(folder)
    if inside.exists() and not _is_in(str(inside), _folders(run)):
        raise UsageError(f"a query reads only inside {run}, and {name} is a link that leads outside.")
    view = name.replace('"', '""')
    connection.execute(f'create view "{view}" as from {sql_text(file_url(inside))}')


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """Turn what DuckDB and Arrow raise into errors for the person at the terminal."""
    try:
        yield
    except duckdb.CatalogException as error:
        for name in [*TABLES, *_JOINS]:
            if f"name {name} " in str(error):
                makers = _JOINS[name][0] if name in _JOINS else (name,)
                missing = next((m for m in makers if not run.partitions(m)), makers[0])
                raise NotReady(f"{run} has no {missing} yet: run `{MADE_BY[missing]} {run} …` first.") from None
        raise UsageError(error_text(error)) from None
    except duckdb.OutOfMemoryException as error:
        raise PrefdataError(f"{error_text(error)}. Raise --memory-limit, or query less.") from None
    except duckdb.PermissionException as error:
        raise UsageError(f"a query reads only inside {run}: {error_text(error)}") from None
    except duckdb.IOException as error:
        raise InputError(error_text(error)) from None
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise UsageError(error_text(error)) from None


def _portable(answer: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """`answer` with text in the columns whose types are in `_AS_TEXT`, also inside lists and structs."""
    # Columns are taken by number: two of them may have one name.
    columns = (f"#{i}::varchar" if _as_text(kind) else f"#{i}" for i, kind in enumerate(answer.types, start=1))
    return answer.project(", ".join(columns))


def _as_text(kind: Any) -> bool:
    inside = kind.children if kind.id in ("array", "list", "map", "struct") else []
    # The type of an array includes its length.
    return kind.id in _AS_TEXT or any(_as_text(part) for _, part in inside if isinstance(part, type(kind)))


def _numbered(names: list[str]) -> list[str]:
    """`names`, each once: `a, a` is `a, a_1`."""
    given: list[str] = []
    for name in names:
        later = (f"{name}_{i}" for i in count(1))
        given.append(name if name not in given else next(new for new in later if new not in given and new not in names))
    return given
