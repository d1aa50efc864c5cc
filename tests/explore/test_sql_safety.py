"""sql: no query writes, none reads outside the run, and each stops on Ctrl-C and within its memory."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored_runs import answer, scored_run
from shells import start

from prefdata.cli import output
from prefdata.errors import InputError, PrefdataError, UsageError
from prefdata.explore import sql as explore
from prefdata.explore.sql import query
from prefdata.sql.check import check_condition
from prefdata.sql.files import ReadOnlyFiles, file_url
from prefdata.sql.session import Session
from prefdata.storage.run import Run

Files = dict[str, int]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("queries")
    run = scored_run(folder / "run", [answer(f"p{p}", i, float(i)) for p in range(2) for i in range(3)])
    pq.write_table(pa.table({"a": [1, 2]}), folder / "outside.parquet")
    (run.path / "curves").mkdir()
    pq.write_table(pa.table({"a": [1, 2]}), run.path / "curves/points.parquet")
    (run.path / "table.csv").write_text("a,b\n1,2\n")
    return run


@pytest.fixture(autouse=True)
def _in_its_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)


def files(run: Run) -> Files:
    """Every file and folder in and beside the run, with when it was changed."""
    return {str(path): path.stat().st_mtime_ns for path in run.path.parent.rglob("*")}


WRITES = [
    f"copy {what} to '{where}'{how}"
    for what in ("(select 1)", "scores")
    for where in ("RUN/prompts", "PART", "RUN/new.csv", "RUN/../new.csv", "run://RUN/prompts", "run://PART")
    for how in ("", " (format parquet, overwrite true, per_thread_output true)")
]
"""Each would empty a table, replace a part or make a file."""

AROUND = """
{}
explain {}
explain analyze {}
explain (analyze, format json) {}
/* select */ {}
{}; select 1
select 1; {}
prepare p as {}
create table t as with x as ({}) from x
with x as ({}) select * from x
with x as materialized ({}) select 1
with recursive x as ({}) from x
with a as (with b as ({}) from b) from a
explain with x as ({}) select * from x
explain analyze with x as ({}) select * from x
select * from (with x as ({}) select * from x)
select (with x as ({}) select count(*) from x)
select 1 where exists (with x as ({}) from x)
select 1 union all (with x as ({}) select count(*) from x)
select [y for y in [(with x as ({}) select count(*) from x)]]
select 1 limit (with x as ({}) select count(*) from x)
select * from scores order by (with x as ({}) select count(*) from x)
select * from scores, lateral (with x as ({}) from x)
values ((with x as ({}) select count(*) from x))
describe (with x as ({}) from x)
summarize with x as ({}) from x
from (with x as ({}) from x) pivot (count(*) for 1 in (1))
""".strip().splitlines()
"""Where a statement may hide."""

NO_QUERIES = """
insert into scores values (1)
with x as (insert into scores values (1) returning *) from x
with x as (delete from scores returning *) from x
with x as (update scores set score = 1 returning *) from x
delete from scores
update scores set score = 1
truncate scores
drop view scores
drop schema main cascade
create view v as select 1
create or replace view scores as select 1
create table t (a int)
create macro m() as 1
create sequence s
create type e as enum ('a')
create secret (type s3)
alter view scores rename to x
comment on view scores is 'x'
attach 'RUN/x.db'
attach ':memory:' as m
detach memory
use main
set threads = 1
set variable x = 1
reset all
pragma version
pragma enable_profiling
pragma profiling_output = 'RUN/p'
call pragma_version()
call enable_logging(storage = 'file')
checkpoint
vacuum
analyze
begin
commit
install httpfs
load httpfs
load 'RUN/x.so'
export database 'RUN/e'
import database 'RUN'
execute p
deallocate p
update extensions
explain drop view scores
explain analyze create table t as select 1
explain pragma version
explain set threads = 1
explain (select 1); drop view scores
select 1; select 2
;
--
explain
selct 1
select $1
pivot scores on reason
""".strip().splitlines()
"""Other statements, several, none."""
NO_QUERIES += ["", " ", "-- select\ndrop view scores", "select 1\0; drop view scores", "select '\ud83d'"]
NO_QUERIES += [f"select {'(' * 5000}1{')' * 5000}", f"select {'1+' * 20000}1"]

OUTSIDE = """
from '/etc/passwd'
from '/etc/*.csv'
from 'outside.parquet'
from 'RUN/../outside.parquet'
from '/proc/self/environ.csv'
from '/dev/stdin'
from 'run:///etc/passwd.csv'
from 'file:///etc/passwd'
from 'http://127.0.0.1:9/x.parquet'
from 's3://x/y.parquet'
from './.tmp/x.csv'
from duckdb_secrets()
from duckdb_logs()
from duckdb_variables()
from duckdb_temporary_files()
from which_secret('s3://x', 's3')
from query('copy (select 1) to ''RUN/q''')
from arrow_scan(1, 2, 3)
from json_execute_serialized_sql(json_serialize_sql('select 1'))
from pandas_scan(1)
from seq_scan(scores)
from enable_logging()
from checkpoint()
select getenv('HOME')
select 'HOME'.getenv()
select list_transform(['HOME'], lambda x: main.getenv(x))
select nextval('s')
select write_log('x')
select json_serialize_plan('select 1')
select (select content from read_text('/etc/passwd'))
explain from read_text('/etc/passwd')
describe from read_text('/etc/passwd')
with x as (from read_text('/etc/passwd')) from x
select * from scores join read_text('/etc/passwd') on true
from secret
from sys
""".strip().splitlines()
"""What reads something else than the run's tables and files."""
_READERS = """
read_csv read_csv_auto read_json read_json_auto read_ndjson read_text read_blob read_parquet read_duckdb glob sniff_csv
parquet_scan parquet_metadata parquet_schema parquet_kv_metadata query query_table main.read_text system.main.READ_TEXT
""".split()  # noqa: SIM905
OUTSIDE += [f"from {f}('{path}')" for f in _READERS for path in ("/etc/passwd", "RUN/curves/points.parquet")]


@pytest.fixture(scope="module")
def session(run: Run) -> Iterator[Session]:
    with explore._open(run, "1GB") as session:
        yield session


def filled(run: Run, text: str) -> str:
    (part,) = (run.path / "scores/scorer=reward").glob("part-*")
    return text.replace("RUN", str(run.path)).replace("PART", str(part))


@pytest.mark.parametrize("around", AROUND)
def test_nothing_that_writes_is_run_wherever_it_hides(run: Run, session: Session, around: str) -> None:
    before = files(run)
    for write in WRITES:
        with pytest.raises(UsageError), explore._explained(run):
            explore._reader(session.connection, run, filled(run, around.format(write)))
    assert files(run) == before


@pytest.mark.parametrize("statements", [NO_QUERIES, OUTSIDE], ids=["no query", "outside"])
def test_only_queries_of_the_run_are_run(run: Run, session: Session, statements: list[str]) -> None:
    secret = pa.table({"a": [1]})
    before = files(run)
    for statement in statements:
        with pytest.raises(UsageError) as raised, explore._explained(run):
            explore._reader(session.connection, run, filled(run, statement))
        assert "\n" not in str(raised.value), statement
    assert files(run) == before
    assert secret.num_rows == 1


def test_a_link_leads_a_query_to_no_other_file(run: Run, tmp_path: Path) -> None:
    """A run that somebody shared may hold links; a partition that is one, on another disk, is read."""
    (tmp_path / "secret.csv").write_text("a\n7\n")
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    scores = copy.path / "scores/scorer=reward"
    scores.rename(tmp_path / "scores")
    scores.symlink_to(tmp_path / "scores")
    (copy.path / "link.csv").symlink_to(tmp_path / "secret.csv")
    (copy.path / "folder").symlink_to(tmp_path)
    for name in ("link.csv", "folder/secret.csv", "link*.csv", "folder/*.csv", "**/secret.csv"):
        with pytest.raises((UsageError, InputError)):
            explore.query(copy, f"from '{copy.path}/{name}'")
    (part,) = scores.glob("part-*")
    for table in ("scores", f"'{part}'", f"'{scores}/*.parquet'"):
        assert explore.query(copy, f"from {table}").num_rows == 6


def test_the_command_refuses_in_one_line_and_changes_nothing(run: Run, prefdata) -> None:
    before = files(run)
    how = "(format parquet, overwrite true, per_thread_output true)"
    code, out, err = prefdata("sql", run.path, f"explain analyze copy (select 1) to '{run.path}/prompts' {how}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert files(run) == before


def answer_to(session: Session, condition: str) -> None:
    query = f"select candidate_id from scores where ({condition}\n)"
    check_condition(session.connection, condition, query)
    session.connection.sql(query)


def test_a_condition_is_checked_as_a_query_is(run: Run, session: Session) -> None:
    queries = [around.format(write) for around in AROUND for write in WRITES[:2]] + NO_QUERIES + OUTSIDE
    hidden = [f"{place} ({one})" for one in queries if one.strip() for place in ("exists", "score in")]
    broken = ["true) union all (select 'x'", "true limit 1", "true; select 1", "true)", "true /*", "version() = '1'"]
    for condition in map(partial(filled, run), queries + hidden + broken):
        with pytest.raises((UsageError, duckdb.Error)):  # DuckDB's own where a file has no view of its name
            answer_to(session, condition)


@pytest.mark.parametrize(
    "condition", ["exists (with x as (copy (select 1) to 'RUN/x') from x)", "score in (from 'RUN')"]
)
@pytest.mark.parametrize("command", ["select", "pair --selector all", "sample --model nowhere"])
def test_every_command_checks_its_condition(run: Run, prefdata, command: str, condition: str) -> None:
    before = files(run)
    verb, *more = command.split()
    code, out, err = prefdata(verb, run.path, *more, "--where", filled(run, condition))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--where" in err
    assert files(run) == before


@pytest.mark.parametrize("around", ["{}", "explain analyze {}", "with x as ({}) select * from x"])
def test_the_connection_writes_nothing_even_if_the_check_is_fooled(run: Run, around: str) -> None:
    before = files(run)
    with explore._open(run, "1GB") as session:
        for write in [*WRITES, "export database 'RUN/e'", "attach 'RUN/x.db'", "attach 'run://RUN/x.db'"]:
            with pytest.raises(duckdb.Error):
                session.connection.execute(filled(run, around.format(write)))
        with pytest.raises(duckdb.Error, match="locked"):
            session.connection.execute("set enable_external_access = true")
    assert files(run) == before


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("from 'run/curves/points.parquet'", 2),
        ("select * from 'RUN/curves/points.parquet' a join './run/table.csv' b using (a)", 1),
        ("from 'run/scores/*/*.parquet'", 6),
        ("table scores", 6),
        ("values (1), (2)", 2),
        ("show tables", 4),
        ("describe (select 1)", 1),
        ("summarize prompts", 10),
        ("with recursive t(n) as (select 1 union all select n + 1 from t where n < 5) from t", 5),
        ("select 'copy (select 1) to x; drop view scores' -- ; drop view scores", 1),
        ("from (pivot scores on reason in ('a') using count(*) group by prompt_id)", 2),
        ("select unnest([x + 1 for x in [1, 2]])", 2),
        ("from json_each('[1, 2]')", 2),
        ("select random(), now() from scores tablesample 100%", 6),
        ("from duckdb_columns() where table_name = 'scores' limit 1", 1),
        ("explain from scores", 1),
        ("EXPLAIN /* x */ (ANALYZE, format json) -- y\n with x as (from scores) select * from x;", 1),
        ("explain analyze (select 1)", 1),
    ],
)
def test_what_reads_the_run_is_run(run: Run, sql: str, rows: int) -> None:
    assert query(run, filled(run, sql)).num_rows == rows


def test_a_part_of_another_contract_is_named(run: Run, tmp_path: Path) -> None:
    other = scored_run(tmp_path / "other", [answer("p", 0, 1.0)])
    (part,) = (other.path / "scores/scorer=reward").glob("part-*")
    rows = pq.read_table(part, partitioning=None)
    pq.write_table(rows.replace_schema_metadata({**rows.schema.metadata, b"version": b"0"}), part)
    with pytest.raises(InputError, match=f"{part} has version 0 of the scores contract"):
        query(other, "select 1")


def test_a_query_has_a_memory_limit(run: Run, prefdata) -> None:
    with pytest.raises(PrefdataError, match=r"Out of Memory.*Raise --memory-limit"):
        query(run, "select len(list(range)) from range(20_000_000)", memory_limit="50MB")
    with pytest.raises(PrefdataError, match="the rows need more memory than 50MB"):
        query(run, "from range(20_000_000)", memory_limit="50MB")
    assert prefdata("sql", run.path, "select 1", "--memory-limit", "much")[0::2] == (
        2,
        "prefdata: the memory limit 'much' is no size: use for example 4GB, 500MB or 50%.\n",
    )
    assert prefdata("sql", run.path, "select 1 as a", "--memory-limit", "100 MB") == (0, "a\n1\n", "")


def test_what_does_not_fit_into_memory_is_sorted_in_a_private_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = files(run)
    sql = "select hash(range)::varchar as h from range(4_000_000) order by h"
    with explore._open(run, "60MB") as session:
        reader, _ = session.run(lambda connection: explore._reader(connection, run, sql))
        first = next(reader)["h"].to_pylist()
        assert first == sorted(first)
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert list((folder / "spill").iterdir())
        del reader
    assert list(tmp_path.iterdir()) == []
    assert files(run) == before


LONG = {
    "a cross join": "select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = 7",
    "a recursion": "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t",
    "a sort on disk": "from (select hash(range)::varchar h from range(500000000)) order by h",
    "one call that cannot be stopped": "select levenshtein(repeat('ab', 90000), repeat('ba', 90000))",
    "rows that nobody reads": "from range(100000000000)",
}


@pytest.mark.parametrize("sql", LONG.values(), ids=LONG)
def test_ctrl_c_stops_any_query(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    form = "parquet" if sql.startswith("from range") else "csv"
    assert stopped(start("sql", run.path, sql, "-f", form, "--memory-limit", "300MB"), tmp_path) == 130
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_a_condition(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert stopped(start("select", run.path, "--where", f"({LONG['a cross join']}) > 0"), tmp_path) == 130
    assert list(tmp_path.iterdir()) == []


def stopped(process: subprocess.Popen[str], folder: Path) -> int:
    """The exit code of a command that gets Ctrl-C while its query runs."""
    try:
        while not list(folder.iterdir()):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        return process.wait(60)  # each query would take hours
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


def test_threads_that_share_an_open_file_read_their_own_ranges(tmp_path: Path) -> None:
    """DuckDB's threads seek and then read, in two calls between which another thread may seek."""
    content = bytes(i % 251 for i in range(100_000))
    (tmp_path / "file").write_bytes(content)
    file = ReadOnlyFiles(lambda _: True).open(file_url(tmp_path / "file"))

    def read(place: int) -> bool:
        file.seek(place)
        time.sleep(0)  # lets another thread run
        return file.read(100) == content[place : place + 100]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [i * 7919 % 99_900 for i in range(4000)]))
    file.seek(99_990)
    assert (file.read(100), file.read(100)) == (content[99_990:], b"")
    file.close()


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "table", "markdown", "parquet"])
def test_rows_print_the_same_in_however_many_pieces_they_come(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    rows = pa.table(
        {"n": [1, 20, 3], "both": [[2, 3], [], [1]], "text": ["a\n", "\u2028", "c"], "none": pa.nulls(3, pa.string())}
    )

    def printed(*pieces: pa.Table) -> bytes:
        stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
        monkeypatch.setattr("sys.stdout", stdout)
        output.pieces(iter(pieces), form)
        stdout.flush()
        return stdout.buffer.getvalue()

    whole, twice = printed(rows), printed(rows.slice(0, 2), rows.slice(2))
    if form == "parquet":
        assert [pq.read_table(io.BytesIO(one)) for one in (whole, twice)] == [rows, rows]
    else:
        assert whole == twice
    if form == "json":
        assert json.loads(whole) == rows.to_pylist()
        assert json.loads(printed(rows.slice(3))) == []
    if form == "csv":
        assert printed(rows.slice(3)).decode() == "n,both,text,none\n"
