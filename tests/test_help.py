"""Help, and the errors for options that there are not: what a person reads before the first command works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import typing
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

from prefdata.errors import UsageError
from prefdata.specs import ExportSpec, Group, PairSpec, RankSpec, SampleSpec, SelectSpec, group_of
from prefdata.specs.other_names import NOT_A_SETTING, OTHER_NAMES
from prefdata.train.specs import DpoSpec, RmSpec, SftSpec

(ENTRY,) = entry_points(group="console_scripts", name="prefdata")
ENTRY.load()
STEPS = {("ingest",), ("sample",), ("rank",), ("select",), ("pair",), ("export",)} | {
    ("train", name) for name in ("sft", "rm", "dpo")
}


def commands(group=None, path=()):
    group = group or typer.main.get_command(sys.modules["prefdata.cli.main"].app)
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


EVERY = dict(commands())
"""Every command and group of commands, by its words."""


def options(command):
    return [param for param in command.params if param.param_type_name == "option"]


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_fits_and_breaks_nothing(path, width, prefdata, monkeypatch) -> None:
    """No line is longer than the terminal; every flag and every choice is there as it is typed."""
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = prefdata(*path, "--help")
    assert (code, err) == (0, "")
    long = [line for line in out.splitlines() if len(line) > width and '"select' not in line]
    assert long == []
    for option in options(EVERY[path]):
        for flag in [*option.opts, *option.secondary_opts]:
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", out), flag
        for choice in (option.metavar or "").split("|"):
            assert re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", out), choice


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_option_says_what_it_takes(path) -> None:
    for option in options(EVERY[path]):
        assert option.help, option.name
        assert option.is_flag or option.metavar, option.name
        assert option.rich_help_panel or not path, option.name


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_an_option_says_once_that_it_is_repeatable(path, prefdata) -> None:
    """The page marks such options itself: a text that says so too reads "may be given several times. Repeatable."."""
    out = prefdata(*path, "--help")[1]
    assert not re.search(r"several\s+times", out)
    assert out.count("Repeatable.") == sum(option.multiple for option in options(EVERY[path]))


@pytest.mark.parametrize("spec", [SampleSpec, RankSpec, SelectSpec, PairSpec, ExportSpec, SftSpec, RmSpec, DpoSpec])
def test_every_setting_has_a_title(spec) -> None:
    assert [name for name, field in spec.settings().items() if group_of(field) is Group.SETTINGS] == []


def test_rank_is_titled_by_kind_of_scorer(prefdata, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = prefdata("rank", "--help")[1]
    sections = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", out, flags=re.MULTILINE))
    scorers = re.findall(r"^  (--[\w-]+)", sections["Scorer (name exactly one)"], flags=re.MULTILINE)
    assert scorers[:3] == ["--reward-model", "--function", "--pointwise"]
    assert len(scorers) == 12
    for title, flag in (
        ("Verifiers (--verifier)", "--time-limit"),
        ("Combined scores (--combine)", "--normalize"),
        ("Engine: vllm", "--quantization"),
        ("Output", "--name"),
        ("General", "--config"),
    ):
        assert flag in sections[title]
    titles = list(sections)
    assert titles[0] == "Arguments"
    assert titles[-1] == "General"


def test_a_run_must_exist_but_for_ingest(prefdata, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path, command in EVERY.items():
        if any(param.name == "run" and param.metavar == "RUN" for param in command.params):
            must = "it is created if it does not" if path in (("ingest",), ("run",)) else "it must exist"
            assert must in prefdata(*path, "--help")[1]


def test_what_is_needed_is_marked(prefdata) -> None:
    assert re.search(r"--model TEXT .*\n?.*\(required\)", prefdata("sample", "--help")[1].replace("  ", " "))
    assert "(required)" not in prefdata("rank", "--help")[1]


def test_examples_can_be_copied(prefdata, monkeypatch) -> None:
    """A long example goes on after a backslash, and not within quotes."""
    monkeypatch.setenv("COLUMNS", "80")
    out = prefdata("sql", "--help")[1]
    example = out.partition("Example: ")[2].strip()
    assert example.startswith("prefdata sql runs/demo \\\n")
    assert '"select sampler, count(*), avg(completion_tokens) from candidates group by 1"' in example


# Other tools' names


def known(command):
    return {flag.lstrip("-").replace("-", "_"): option.opts[0] for option in options(command) for flag in option.opts}


@pytest.mark.parametrize("path", sorted(STEPS), ids=" ".join)
def test_another_tools_name_is_answered_with_ours(path, prefdata) -> None:
    """Every name of the table, with dashes and with underscores, where the command has the setting."""
    names = known(EVERY[path])
    checked = 0
    for theirs, ours in OTHER_NAMES.items():
        mine = next((names[name] for name in ours if name in names), None)
        if mine is None or theirs in names:
            continue
        written = f"--{theirs}" if checked % 2 else f"--{theirs.replace('_', '-')}"
        code, out, err = prefdata(*path, "x", written, "1")
        assert (code, out) == (2, "")
        assert err.startswith(f"prefdata: there is no option {written}: here it is {mine}. See prefdata")
        checked += 1
    assert checked >= 3


def test_every_name_of_the_table_leads_somewhere() -> None:
    """Each of our names is an option of some command, and no other tool's name is an option itself everywhere."""
    every = {name for path, command in EVERY.items() for name in known(command)}
    assert {ours for names in OTHER_NAMES.values() for ours in names} <= every
    assert {theirs for theirs, ours in OTHER_NAMES.items() if not ours} == set(NOT_A_SETTING)


@pytest.mark.parametrize("name", NOT_A_SETTING)
def test_what_training_does_without_a_setting(name, prefdata) -> None:
    code, _, err = prefdata("train", "dpo", "d", f"--{name}", "1")
    assert code == 2
    assert NOT_A_SETTING[name] in err


@pytest.mark.parametrize(("written", "ours"), [("--top_p", "--top-p"), ("--Max-Tokens", "--max-tokens")])
def test_our_own_name_written_otherwise(written, ours, prefdata) -> None:
    assert f"here it is {ours}." in prefdata("sample", "r", written, "1")[2]


def test_keys_of_other_tools_in_yaml_and_in_python(prefdata, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("train: {dpo: {learning_rate: 1.0e-6}}")
    err = prefdata("train", "dpo", "d", "--model", "m", "--out", "o", "-c", config)[2]
    assert 'unknown key "learning_rate". Here it is "lr".' in err
    with pytest.raises(UsageError, match=r'unknown key "max_new_tokens". Here it is "max_tokens"'):
        SampleSpec.parse({"model": "m", "max_new_tokens": 3})
    with pytest.raises(UsageError, match=r'unknown key "report_to". Leave it out: metrics.jsonl'):
        DpoSpec.parse({"model": "m", "report_to": "none"})


# Completion of the shell


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    """As a person does it: in bash, `prefdata --install-completion`, and then the tab key."""
    here = Path(sys.executable).parent
    env = {"HOME": str(tmp_path), "PATH": f"{here}:/usr/bin:/bin", "SHELL": "/bin/bash"}
    done = subprocess.run(
        ["bash", "-c", "prefdata --install-completion; exit $?"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "completion installed" in done.stdout
    script = tmp_path / ".bash_completions/prefdata.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert complete(script, "prefdata sel", env) == ["select"]
    assert complete(script, "prefdata train s", env) == ["sft"]
    assert complete(script, "prefdata rank r --rew", env) == ["--reward-model"]


def complete(script: Path, line: str, env: dict[str, str]) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split()
    code = f"""
source {script}
COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; COMP_LINE="{line}"
_prefdata_completion prefdata
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], env={**os.environ, **env}, capture_output=True, text=True)
    return done.stdout.split()


def test_literals_are_shown_as_choices() -> None:
    """What a person may type for a setting with a few values is what help shows."""
    schedule = RankSpec.settings()["schedule"]
    (option,) = [option for option in options(EVERY["rank",]) if option.name == "schedule"]
    assert option.metavar == "|".join(typing.get_args(schedule.annotation))
