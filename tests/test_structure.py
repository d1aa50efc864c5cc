"""The house's own rules: imports point down, the package list is the tree, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {
    "errors",
    "ids",
    "printable",
    "progress",
    "parallel",
    "keyed_random",
    "stats",
    "specs",
    "sql",
    "storage",
    "models",
    "chat",
}
"""What every package may use."""

ALLOWED: dict[str, set[str]] = {
    "formats": set(),
    "engines": set(),
    "scored": set(),
    "scorers": {"engines"},
    "prompts": {"formats"},
    "candidates": {"engines"},
    "comparisons": {"scorers"},
    "scores": {"scorers"},
    "selections": {"scored"},
    "pairs": {"scored"},
    "exports": {"formats"},
    "train": {"formats", "engines", "scorers"},  # ppo samples and scores while it trains
    "explore": {
        "formats",
        "scored",
        "selections",
        "scorers",
        "train",
    },
    "steps": {"scorers", "comparisons", "scores"},
    "pipeline": set(),
}
"""What each package may use besides. A reward model is evaluated as it scores, on data that trains it. Steps never
import each other; nothing imports the command line."""

SOURCES = sorted([*ROOT.glob("prefdata/**/*.py"), *ROOT.glob("cli/*.py"), *ROOT.glob("sample_data/*.py")])


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "prefdata" else parts[0]


def imports(path: Path) -> set[str]:
    """The rooms of prefdata that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "prefdata":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("prefdata.")}
    return found


def allowed(name: str) -> set[str]:
    if name in GROUND:
        return GROUND
    if name in ("cli", "sample_data"):
        return GROUND | set(ALLOWED)
    return GROUND | ALLOWED.get(name, set()) | {name}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    assert imports(path) <= allowed(room(path))


def test_every_module_has_its_place() -> None:
    known = GROUND | set(ALLOWED) | {"__init__", "cli", "sample_data"}
    assert {room(path) for path in SOURCES} == known


OF_ENGINES = {
    "prefdata/scorers/classifier/vllm.py": {"vllm.launch"},  # runs on vLLM, and starts it as the engine does
    "prefdata/scorers/kinds.py": {"open", "restart"},  # opens a judge's engine
}
"""What some scorers take from the engines besides their protocol."""


def test_scorers_take_only_the_protocol_from_engines() -> None:
    for path in ROOT.glob("prefdata/scorers/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefdata.engines"):
                module = (node.module or "").removeprefix("prefdata.engines").lstrip(".")
                names = (
                    {module} if module and module != "vllm" else {f"{module}.{a.name}".lstrip(".") for a in node.names}
                )
                assert names <= {"protocol"} | OF_ENGINES.get(str(path.relative_to(ROOT)), set())


def blocked(modules: list[str], statement: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n{statement}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_is_light() -> None:
    done = blocked(
        ["torch", "transformers", "vllm", "polars", "duckdb"], "import prefdata; prefdata.Run; prefdata.SampleSpec"
    )
    assert done.returncode == 0, done.stderr


def test_the_trainer_runs_on_a_bare_box() -> None:
    files = [path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("prefdata/train/**/*.py")]
    modules = [".".join(path.parts) for path in files if path.stem != "__init__"]
    needless = ["polars", "duckdb", "rich", "typer", "datasets", "vllm", "tensorboard"]
    done = blocked(needless, "import " + ", ".join(modules))
    assert done.returncode == 0, done.stderr


def test_the_package_list_is_the_tree() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tree = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("prefdata/**/__init__.py")}
    mapped = {"prefdata.cli", "prefdata.recipes", "prefdata.schemas", "prefdata.templates", "prefdata.sample_data"}
    assert sorted(said) == sorted(tree | mapped)


def test_files_and_functions_stay_small() -> None:
    long = [str(path) for path in SOURCES if len(path.read_text("utf-8").splitlines()) > 400]
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 80:
                long.append(f"{path}:{node.name}")
    assert long == []


def test_no_name_is_undefined() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "F821", "."], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.slow
def test_the_wheel_holds_everything_and_nothing_else(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", ROOT, checkout], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        checkout,
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"prefdata", f"{wheel.name.split('-py3')[0]}.dist-info"}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = {name for name in tracked if name.startswith("prefdata/")}
    mapped = ("cli/", "schemas/", "templates/", "sample_data/")
    wanted |= {f"prefdata/{name}" for name in tracked if name.startswith(mapped)}
    assert wanted <= set(names)


@pytest.mark.slow
def test_commands_work_from_an_installed_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    code = "from prefdata.cli import demo; d = demo.sample_data(); print(d)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    data = site / "prefdata/sample_data"
    assert done.stdout.strip() == str(data), done.stderr
    assert (data / "policy/model.safetensors").exists()
