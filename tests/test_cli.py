"""The command line: help, messages, exit codes, YAML and flags."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import yaml

(ENTRY,) = entry_points(group="console_scripts", name="prefdata")


def process(*arguments: object, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefdata.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, **more)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(5)))
    return file


def commands(group=None, path=()):
    group = group or typer.main.get_command(sys.modules[ENTRY.load().__module__].app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_and_an_example(path, prefdata) -> None:
    code, out, _ = prefdata(*path, "--help")
    assert code == 0
    assert "Usage: prefdata" in out
    if path not in ((), ("train",), ("eval",), ("check",)):
        assert f"Example: prefdata {' '.join(path)} " in out


def test_help_is_light() -> None:
    """Neither torch nor a table library is imported before a command needs it."""
    heavy = ("torch", "transformers", "vllm", "polars", "duckdb", "pyarrow", "pandas")
    code = f"""
import sys
sys.argv = ["prefdata", "--help"]
from prefdata.cli.main import main
try:
    main()
except SystemExit:
    pass
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sampel"], "No such command 'sampel'"),
        (["sample"], "Missing argument 'RUN'"),
        (["sample", "r", "--model", "m", "--temprature", "1"], "--temperature"),
        (["sample", "r", "--model", "m", "-n", "many"], "Invalid value for '-n'"),
        (["sample", "r", "--model", "m", "-n", "0"], "sample: -n: should be greater than or equal to 1, not 0"),
        (["sample", "r"], "sample: --model is needed"),
        (["pair", "r", "--min-margin=-3"], "pair: --min-margin: should be greater than or equal to 0, not -3.0"),
        (["rank", "r"], "name one scorer"),
        (["select", "r", "--method", "bon"], "'bon'"),
        (["sql", "nowhere"], "there is no run nowhere: `prefdata ingest nowhere FILE…` starts one."),
        (["status", "nowhere"], "there is no run nowhere"),
        (["sample", "nowhere", "--model", "m"], "nowhere has no prompts yet: run `prefdata ingest nowhere …` first."),
        (["rank", "nowhere", "--reward-model", "m"], "run `prefdata sample nowhere …` first."),
        (["select", "nowhere"], "run `prefdata rank nowhere …` first."),
        (["ingest", "r", "nothing.jsonl"], "nothing.jsonl"),
        (["train", "dpo", "nothing.jsonl", "--model", "m", "--out", "o"], ""),
    ],
)
def test_wrong_usage(arguments, said, prefdata, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = prefdata(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("prefdata: ")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(prefdata, tmp_path) -> None:
    assert "Traceback" not in prefdata("sql", tmp_path / "x")[2]
    assert "Traceback" in prefdata("sql", tmp_path / "x", "--debug")[2]


def test_yaml_under_flags(prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("select: {k: 3, beta: 2}\ntrain: {dpo: {lr: 0.01}}\n")
    code, out, _ = prefdata("select", "r", "-c", config, "--beta", "0.25", "--print-config")
    assert code == 0
    assert "  k: 3\n" in out
    assert "  beta: 0.25\n" in out
    code, out, _ = prefdata("train", "dpo", "d", "--model", "m", "--out", "o", "-c", config, "--print-config")
    assert "    lr: 0.01\n" in out


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.e-4", "+1.0e-4", "0.0001", ".1e-3"])
def test_numbers_in_yaml_as_people_write_them(number, prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"train: {{dpo: {{lr: {number}, model: m}}}}\nselect: {{name: 1e4x, k: 3}}\n")
    code, out, err = prefdata("train", "dpo", "d", "--out", "o", "-c", config, "--print-config")
    assert code == 0, err
    assert yaml.safe_load(out)["train"]["dpo"]["lr"] == 1e-4
    assert "name: 1e4x" in prefdata("select", "r", "-c", config, "--print-config")[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("select: {betta: 3}", 'select: unknown key "betta". Did you mean "beta"?'),
        ("selct: {k: 3}", 'unknown section "selct". Did you mean "select"?'),
        ("select: {k: three}", "k: should be a valid integer, not 'three'"),
        ("select: 3", "should hold keys and values"),
        ("select: {k: [", "is not YAML"),
        ("- 1", "should hold one section per command"),
    ],
)
def test_bad_yaml(text, said, prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    code, _, err = prefdata("select", "r", "-c", config)
    assert code == 2
    assert said in err
    assert "run.yaml" in err


def test_what_print_config_prints_can_be_read_back(prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    _, out, _ = prefdata("select", "r", "--k", "3", "--sampler", "a", "--sampler", "b", "--print-config")
    config.write_text(out)
    assert prefdata("select", "r", "-c", config, "--print-config")[1] == out


def test_ingest_again_and_otherwise(prefdata, prompts, tmp_path) -> None:
    code, out, _ = prefdata("ingest", tmp_path / "r", prompts)
    assert code == 0
    assert out.startswith("ingest: made ")
    assert "5 in, 5 out" in out
    assert prefdata("ingest", tmp_path / "r", prompts)[1].startswith("ingest: nothing to do")
    prompts.write_text('{"prompt": "another"}\n')
    code, _, err = prefdata("ingest", tmp_path / "r", prompts)
    assert code == 2
    assert "--replace" in err
    assert prefdata("ingest", tmp_path / "r", prompts, "--replace")[0] == 0
    assert prefdata("sql", tmp_path / "r", "select count(*) from prompts")[1] == "count_star()\n1\n"


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "markdown"])
def test_sql_formats(form, prefdata, prompts, tmp_path) -> None:
    prefdata("ingest", tmp_path / "r", prompts)
    query = "select messages[1].content as text, 2 as two, null as nothing from prompts order by text limit 1"
    code, out, _ = prefdata("sql", tmp_path / "r", query, "--format", form)
    assert code == 0
    wanted = {
        "table": "text    two  nothing\n------  ---  -------\nSay 0.    2\n",
        "csv": "text,two,nothing\nSay 0.,2,\n",
        "json": '[\n  {\n    "text": "Say 0.",\n    "two": 2,\n    "nothing": null\n  }\n]\n',
        "jsonl": '{"text": "Say 0.", "two": 2, "nothing": null}\n',
        "markdown": "| text   | two | nothing |\n| ------ | --: | ------- |\n| Say 0. |   2 |         |\n",
    }
    assert out == wanted[form]


SUMS = "select sum(n) as s, 10.00::decimal(9, 2) as ten, 1.50::decimal(9, 2) as d from range(2000) as t(n)"
DATES = "select date '2020-01-02' as day, time '10:00:00' as hour, timestamp '2020-01-02 10:00:00' as at"
NOT_JSON = "select 'nan'::double as x, ['-inf'::double, 1] as list, map {date '2020-01-02': 'inf'::float} as map"


@pytest.mark.parametrize(
    ("query", "form", "wanted"),
    [
        (SUMS, "jsonl", '{"s": 1999000, "ten": 10, "d": 1.5}\n'),
        (SUMS, "csv", "s,ten,d\n1999000,10.00,1.50\n"),
        (SUMS, "table", "        s    ten     d\n---------  -----  ----\n1,999,000  10.00  1.50\n"),
        (f"select {'9' * 38}::hugeint as n, [2.5::decimal(2, 1)] as l", "jsonl", f'{{"n": {"9" * 38}, "l": [2.5]}}\n'),
        (DATES, "jsonl", '{"day": "2020-01-02", "hour": "10:00:00", "at": "2020-01-02 10:00:00"}\n'),
        (DATES, "markdown", "| 2020-01-02 | 10:00:00 | 2020-01-02 10:00:00 |\n"),
        (NOT_JSON, "jsonl", '{"x": null, "list": [null, 1.0], "map": {"2020-01-02": null}}\n'),
        (NOT_JSON, "csv", 'NaN,"[null, 1.0]","{""2020-01-02"": null}"\n'),
        ("select 'nan'::float as x", "json", '[\n  {\n    "x": null\n  }\n]\n'),
        ("select 'nan'::float as x, 'inf'::double as y", "table", "nan  inf\n"),
    ],
)
def test_what_each_form_makes_of_a_value(query, form, wanted, prefdata, prompts, tmp_path) -> None:
    prefdata("ingest", tmp_path / "r", prompts)
    code, out, _ = prefdata("sql", tmp_path / "r", query, "--format", form)
    assert code == 0
    assert out.endswith(wanted)


@pytest.mark.parametrize("group", [(), ("eval",), ("train",), ("check",)], ids=" ".join)
def test_a_group_by_itself_shows_its_help_and_no_more(group, prefdata) -> None:
    code, out, err = prefdata(*group)
    assert code == 2
    assert "Usage: prefdata" in out
    assert err == ""


def test_status_of_what_is_no_run(prefdata, prompts, tmp_path) -> None:
    (tmp_path / "folder/models/mine").mkdir(parents=True)
    code, out, err = prefdata("status", tmp_path / "folder")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'folder'} is not a run: none of a run's tables (prompts, " in err
    for command in ("status", "sql", "select", "pair"):
        code, out, err = prefdata(command, prompts)
        assert (code, out) == (2, "")
        assert err.startswith(f"prefdata: {prompts} is a file and no run")
        assert err.count("\n") == 1


def test_csv_holds_what_the_table_holds(prefdata, tmp_path) -> None:
    """Escape sequences too: who reads it in a pipe wants the data."""
    text = "\x1b[31mred\x1b[0m, 很 \U0001f3ac"
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": text}) + "\n")
    prefdata("ingest", tmp_path / "r", file)
    out = prefdata("sql", tmp_path / "r", "select messages[1].content as said from prompts", "-f", "csv")[1]
    assert out == f'said\n"{text}"\n'


def test_terminal_escapes_of_a_model_are_shown_and_not_obeyed(prefdata, tmp_path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "red \x1b[31m and bell \x07"}) + "\n")
    prefdata("ingest", tmp_path / "r", file)
    out = prefdata("sql", tmp_path / "r", "select messages from prompts", "-f", "table")[1]
    assert "\x1b" not in out
    assert "\x07" not in out


@pytest.mark.parametrize(
    ("command", "reader", "read"),
    [
        ("sql {run} 'select * from range(200000)'", "head -1", "range\n"),
        ("--help", "sleep 0", ""),
        ("sample --help", "sleep 0", ""),
    ],
)
def test_a_closed_pipe_is_no_error(prompts, tmp_path, command, reader, read) -> None:
    process("ingest", tmp_path / "r", prompts)
    command = command.format(run=tmp_path / "r")
    shell = f"set -o pipefail; {sys.executable} -m prefdata.cli {command} | {reader}"
    # Unbuffered, Python itself takes a write that a closed pipe cut short for a whole one.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=buffered)
    assert done.stdout == read
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", ["--version", "curves --help", "status {run}", "sql {run} 'select * from prompts' --format parquet"]
)
def test_output_that_cannot_be_written(prompts, tmp_path, command, unbuffered) -> None:
    process("ingest", tmp_path / "r", prompts)
    shell = f"{sys.executable} -m prefdata.cli {command.format(run=tmp_path / 'r')} > /dev/full"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment)
    assert done.stderr.startswith("prefdata: cannot write standard output: the disk is full.")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1
