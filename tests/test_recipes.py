"""Recipes: the commands that a file becomes, what is refused before the first step, and one that runs and continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefdata.errors import InputError, UsageError
from prefdata.pipeline import Recipe, read_recipe, steps_of

ROOT = Path(__file__).parents[1]
RUN = Path("runs/x")


def commands(steps: list, variables: dict | None = None, **changes) -> list[str]:
    recipe = Recipe(title="t", variables=variables or {}, steps=steps)
    return [" ".join(step.arguments) for step in steps_of(recipe, RUN, changes, "r.yaml")]


def test_a_step_is_the_command_that_a_person_would_type() -> None:
    assert commands([
        {"ingest": {"data": ["a.jsonl", "b.jsonl"], "source": "web", "as": "pairs"}},
        {"sample": {"model": "m", "n": 4, "temperature": 0.7, "stop": ["x", "y"]}},
        {"train dpo": {"model": "m", "out": "{run}/models/dpo", "wpo": True, "soft_labels": False, "limit": None}},
        {"train sft": {"data": "d.jsonl", "out": "o"}},
        {"eval policies": {"scorer": ["truth"], "baseline": "m", "policy": ["a", "b"]}},
    ]) == [
        "ingest runs/x a.jsonl b.jsonl --source web --as pairs",
        "sample runs/x --model m -n 4 --temperature 0.7 --stop x --stop y",
        "train dpo runs/x --model m --out runs/x/models/dpo --wpo --no-soft-labels",
        "train sft d.jsonl --out o",
        "eval policies runs/x --scorer truth --baseline m --policy a --policy b",
    ]  # fmt: skip


def test_variables_may_name_those_before_them_and_are_changed_by_set() -> None:
    variables = {"data": "d", "model": "{data}/m", "n": 4}
    steps = [{"sample": {"model": "{model}", "n": "{n}", "name": "best-of-{n}"}}]
    assert commands(steps, variables) == ["sample runs/x --model d/m -n 4 --name best-of-4"]
    assert commands(steps, variables, data="e", n=8) == ["sample runs/x --model e/m -n 8 --name best-of-8"]


def test_rounds_start_from_the_first_and_go_on_from_the_previous() -> None:
    rounds = {
        "count": "{k}",
        "first": {"model": "base"},
        "then": {"model": "{run}/models/{previous}"},
        "steps": [{"sample": {"model": "{model}", "name": "r{round}"}}],
    }
    assert commands([{"rounds": rounds}, {"rank": {"function": "f.py:f"}}], {"k": 3}) == [
        "sample runs/x --model base --name r1",
        "sample runs/x --model runs/x/models/1 --name r2",
        "sample runs/x --model runs/x/models/2 --name r3",
        "rank runs/x --function f.py:f",
    ]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([{"smaple": {}}], r'step 1 \(smaple\): unknown command. Did you mean "sample"'),
        ([{"sample": {"model": "{policy}"}}], r"unknown variable \{policy\} in '\{policy\}' \(known: run\)"),
        ([{"sample": {}, "rank": {}}], r"step 1 should be one command with its settings, not \['sample', 'rank'\]"),
        ([{"sample": "model"}], "should have its settings as keys"),
        ([{"sample": None}], "should have its settings as keys"),
        ([{"rounds": {"count": 0, "steps": []}}], "count should be a whole number from 1, not 0"),
        ([{"rounds": {"count": 1, "step": []}}], "steps: Field required"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_place(steps: list, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        commands(steps)


def test_a_variable_that_a_recipe_does_not_have() -> None:
    with pytest.raises(UsageError, match=r"r\.yaml has no variable 'm' \(it has: n\)"):
        commands([], {"n": 1}, m=2)


@pytest.mark.parametrize("content", ["", "- a\n", "title: [", "title: t\nsteps: []\nstep: []\n", "title: t\n"])
def test_a_file_that_is_no_recipe(content: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError, match=r"r\.yaml"):
        read_recipe(tmp_path / "r.yaml")


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefdata.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write(path: Path, *steps: dict, **variables) -> Path:
    path.write_text(yaml.safe_dump({"title": "t", "variables": variables, "steps": list(steps)}))
    return path


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"sample": {"model": "m", "temprature": 1}}, "--temprature"),
        ({"sample": {"model": "m", "temperature": "hot"}}, "--temperature"),
        ({"select": {"method": "best"}}, "best"),
        ({"rank": {"name": "x"}}, "rank"),
        ({"eval policies": {"scorer": "s"}}, "--baseline"),
        ({"ingest": {"data": "gone.jsonl"}}, "there is no gone.jsonl"),
    ],
)
def test_a_wrong_step_is_found_before_the_first_one_runs(step: dict, problem: str, tmp_path: Path, prefdata) -> None:
    data = jsonl(tmp_path / "p.jsonl", [{"prompt": "Hi."}])
    recipe = write(tmp_path / "r.yaml", {"ingest": {"data": str(data)}}, step)
    code, out, err = prefdata("run", recipe, tmp_path / "run")
    assert (code, out) == (2, "")
    assert f"{recipe}: step 2 of 2, {next(iter(step))}: " in err
    assert problem in err
    assert not (tmp_path / "run").exists()


def test_a_recipe_runs_and_the_same_command_does_nothing(tmp_path: Path, prefdata) -> None:
    data = jsonl(tmp_path / "p.jsonl", [{"prompt": "Hi.", "responses": ["A.", "B!"]}])
    function = tmp_path / "length.py"
    function.write_text("def score(prompt, response):\n    return float(len(response))\n")
    recipe = write(
        tmp_path / "r.yaml",
        {"ingest": {"data": "{data}", "as": "candidates", "source": "given"}},
        {"rank": {"function": f"{function}:score", "name": "length"}},
        data="nothing",
    )
    command = ("run", recipe, tmp_path / "run", "--set", f"data={data}")
    code, out, _ = prefdata(*command, "--dry-run")
    assert code == 0
    assert [line.split()[1:3] for line in out.splitlines()] == [["to", "do"], ["to", "do"]]
    assert not (tmp_path / "run").exists()
    for expected in (0, 2):
        done = in_a_process(*command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("nothing to do") == expected
    assert "] done" in prefdata(*command, "--dry-run")[1]
    assert prefdata(*command, "--start-at", 3)[0] == 2


def test_a_step_that_fails_stops_the_recipe(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "p.jsonl", [{"prompt": "Hi."}])
    recipe = write(tmp_path / "r.yaml", {"ingest": {"data": str(data)}}, {"rank": {"function": "none.py:f"}})
    done = in_a_process("run", recipe, tmp_path / "run")
    assert done.returncode == 1
    assert "step 2 of 2 failed (exit code 2). Fix that; the same command continues." in done.stderr


def test_built_in_recipes_are_listed_printed_and_check_out(prefdata, tmp_path: Path) -> None:
    code, out, _ = prefdata("recipes")
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == names
    for name in names:
        code, out, err = prefdata("run", name, tmp_path / name, "--set", f"data={ROOT / 'sample_data'}", "--dry-run")
        assert (code, err) == (0, "")
        assert yaml.safe_load(prefdata("recipes", name)[1])["title"]
    code, _, err = prefdata("recipes", "demmo")
    assert code == 2
    assert 'Did you mean "demo"?' in err
