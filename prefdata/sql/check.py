"""Check that SQL from a user only reads tables: `prefdata sql`, `query()` in Python, and every `--where`.

DuckDB parses the text, and its syntax tree is walked. What is allowed is listed, at every depth: queries (SELECT, set
operations, common table expressions), table functions that compute, and EXPLAIN of such a query. All else is refused,
also what later versions of DuckDB may add. The connection enforces the same by itself (`sql_session`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb

from prefdata.errors import UsageError
from prefdata.sql.files import SCHEME

_QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}

_SOURCES = {"BASE_TABLE", "EMPTY", "EXPRESSION_LIST", "JOIN", "PIVOT", "SHOW_REF", "SUBQUERY", "TABLE_FUNCTION"}
"""What may stand in a FROM."""

_COMPUTING = {
    "generate_series", "generate_subscripts", "histogram", "histogram_values", "json_each", "json_tree", "range",
    "repeat", "repeat_row", "summary", "unnest",
}  # fmt: skip
"""Table functions whose rows follow from their arguments."""

_CATALOG = {
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_schemas", "duckdb_settings", "duckdb_tables",
    "duckdb_types", "duckdb_views", "pragma_table_info", "pragma_version",
}  # fmt: skip
"""Table functions that describe what can be queried."""

_OUTSIDE = {"currval", "getenv", "json_serialize_plan", "nextval", "setval", "write_log"}
"""Functions of values that read or change something else."""

_CHANGING = {"version", "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
"""Of another value each time or elsewhere: functions, most of them written without brackets, as columns are."""

_EXPLAIN_WORDS = {"(", ")", ",", "explain", "analyze", "format", "text", "json", "yaml", "html", "graphviz", "mermaid"}

_PATH = re.compile(r"[/\\]|\.(parquet|csv|tsv|json|jsonl|ndjson)(\.(gz|zst))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Query:
    """A query that only reads: its text without the final semicolon, and the files that it names as tables."""

    text: str
    files: tuple[str, ...]


def check_query(connection: duckdb.DuckDBPyConnection, sql: str) -> Query:
    """Return the query in `sql` if it is a single one and only reads.

    Raises:
        UsageError: it is not, or DuckDB cannot parse it.
    """
    text = _single(connection, sql)
    tree = _tree(connection, _explained(connection, text))
    _check_reads(tree, _COMPUTING | _CATALOG)
    names = (n["table_name"] for n in _nodes(tree) if n.get("type") == "BASE_TABLE" and not n.get("schema_name"))
    return Query(text, tuple(sorted({name for name in names if _PATH.search(name)})))


def check_condition(connection: duckdb.DuckDBPyConnection, condition: str, query: str) -> None:
    """Check the condition of a `--where` and the query that it becomes part of.

    It has to give the same rows whenever it is evaluated: a step is a function of its inputs.

    Raises:
        UsageError: it is no single condition that only reads tables, or depends on something else.
    """
    _check_text(condition)
    if len(_statements(connection, f"select 1 where {condition}\n")) != 1:
        raise UsageError("give one condition, such as \"split = 'test' and len(messages) > 1\".")
    tree = _tree(connection, _single(connection, query))
    _check_reads(tree, _COMPUTING)
    unsteady = "select function_name from duckdb_functions() where stability <> 'CONSISTENT'"
    changing = _CHANGING | {name for (name,) in connection.execute(unsteady).fetchall()}
    if found := sorted(set(_names(tree)) & changing):
        raise UsageError(f"{found[0]} gives another value each time; a condition depends on the tables alone.")


def error_text(error: Exception) -> str:
    """Return DuckDB's message in one line, without the excerpt that marks the place in the query."""
    text = re.split(r"\n\n|LINE \d+:", str(error))[0]
    if text.startswith("Traceback"):  # from the file system
        text = str(error).strip().splitlines()[-1]
    return " ".join(text.replace(SCHEME, "").split())


def _single(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return the only statement in `sql`, a SELECT or an EXPLAIN, without its semicolon."""
    _check_text(sql)
    statements = _statements(connection, sql)
    if len(statements) == 1 and statements[0][0] == duckdb.StatementType.MULTI:
        raise UsageError("PIVOT needs its values in the query: pivot … on column in ('a', 'b').")
    if len(statements) != 1 or statements[0][0] not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise UsageError("give one query that reads (select …); a run is only changed by the steps.")
    return _without_end(statements[0][1])


def _check_text(sql: str) -> None:
    if "\0" in sql:
        raise UsageError("SQL does not contain the character NUL.")
    try:
        sql.encode()
    except UnicodeEncodeError:
        raise UsageError("SQL does not contain half a surrogate, which is no character.") from None


def _statements(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[duckdb.StatementType, str]]:
    """Return the kind and text of each statement."""
    try:
        return [(one.type, one.query) for one in connection.extract_statements(sql)]
    except ValueError:
        raise UsageError("this kind of statement is not a query.") from None  # the Python API has no name for it
    except (duckdb.Error, RuntimeError) as error:
        raise UsageError(error_text(error)) from None


def _without_end(query: str) -> str:
    """Return a query without its semicolon and the comments after it: it becomes part of another one."""
    text = query.encode()  # places are counted in bytes
    for place, kind in reversed(duckdb.tokenize(query)):
        if text[place : place + 1] == b";":
            return text[:place].decode()
        if kind != duckdb.token_type.comment:
            break
    return query


def _explained(connection: duckdb.DuckDBPyConnection, query: str) -> str:
    """Return the query that an EXPLAIN is about; another query unchanged."""
    if _is_select(connection, query):
        return query
    text = query.encode()
    places = [place for place, kind in duckdb.tokenize(query) if kind != duckdb.token_type.comment]
    for place, end in pairwise(places):
        word = re.split(r"\s|--|/\*", text[place:end].decode())[0].lower()
        if word not in _EXPLAIN_WORDS:
            break
        if _is_select(connection, rest := text[end:].decode()):
            return rest
    raise UsageError("EXPLAIN shows how a query that reads (select …) is run, and no other statement.")


def _is_select(connection: duckdb.DuckDBPyConnection, text: str) -> bool:
    try:
        return [kind for kind, _ in _statements(connection, text)] == [duckdb.StatementType.SELECT]
    except UsageError:
        return False


def _tree(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    ((text,),) = connection.execute("select json_serialize_sql(?)", [query]).fetchall()
    try:
        parsed = json.loads(text)
    except RecursionError:
        raise UsageError("the query is nested too deeply.") from None
    if parsed["error"] or len(parsed["statements"]) != 1:
        raise UsageError(f"the query cannot be checked ({parsed.get('error_message')}), so it is not run.")
    return parsed["statements"]


def _check_reads(tree: Any, table_functions: set[str]) -> None:
    for node in _nodes(tree):
        kind = str(node.get("type"))
        if kind.endswith("_NODE") and kind not in _QUERIES:
            what = kind.removesuffix("_NODE").removesuffix("_QUERY").replace("_", " ")
            raise UsageError(f"{what} does not only read; a run is only changed by the steps.")
        if "sample" in node and "cte_map" not in node and kind not in _SOURCES:
            raise UsageError(f"a query cannot read from {kind.replace('_', ' ')}.")
        if kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name")).lower()
            if name not in table_functions:
                raise UsageError(
                    f"the table function {name} is not allowed in a query: it reads tables, and files of the run by "
                    "name (from 'RUN/…/points.parquet')."
                )
        if (name := str(node.get("function_name")).lower()) in _OUTSIDE:
            raise UsageError(f"the function {name} is not allowed in a query.")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the syntax tree."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _names(tree: Any) -> Iterator[str]:
    """Yield the functions that a query calls, and the columns that are written without a table's name."""
    for node in _nodes(tree):
        if "function_name" in node:
            yield node["function_name"].lower()
        if len(node.get("column_names") or ()) == 1:
            yield node["column_names"][0].lower()
        if node.get("sample"):
            yield "random"
