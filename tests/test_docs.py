"""Every command that docs/ shows runs, one after the other, as its reader would run them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import vllm_serve
from shells import console_commands, shell

ROOT = Path(__file__).parents[1]
SAMPLING = ROOT / "docs/sampling.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_all(commands: list[str], home: Path) -> dict[str, str]:
    said = {}
    for command in commands:
        done = shell(command, home)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[command] = done.stdout
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "sample_data", home / "sample_data", ignore=shutil.ignore_patterns("__pycache__"))
    return home


@pytest.fixture(scope="module")
def said(home: Path) -> dict[str, str]:
    """What the commands that need nothing more have printed."""
    commands = console_commands(SAMPLING)
    assert len(commands) > 20
    return run_all(commands, home)


def test_the_page_on_sampling(said: dict[str, str]) -> None:
    retry = next(out for command, out in said.items() if command.endswith("--retry-truncated"))
    assert "added what was missing" in retry
    sweep = next(out for command, out in said.items() if "--sweep" in command)
    assert sweep.count("80 in, 80 out") == 3
    seen = next(out for command, out in said.items() if "sampled_messages" in command)
    assert "helpful" in seen or "assistant" in seen or "expert" in seen


def test_the_page_on_ranking(home: Path) -> None:
    commands = console_commands(ROOT / "docs/ranking.md")
    assert len(commands) > 12
    said = run_all(commands, home)
    fitted = next(out for command, out in said.items() if "--labelled" in command)
    assert "ece before" in fitted


def test_the_page_on_curves(home: Path) -> None:
    """The tables that it shows are those that are printed."""
    page = (ROOT / "docs/curves.md").read_text("utf-8")
    printed = "".join(run_all(console_commands(ROOT / "docs/curves.md"), home).values())
    titles = re.findall(r"^(?:The best of n by|Which group's|The plan:|T=0.7:).*$", page, flags=re.MULTILINE)
    assert len(titles) == 5
    assert [title for title in titles if title not in printed] == []
    assert re.search(r"16 +T=0.7.* extrapolated ", printed)


def test_the_page_on_chat_templates(home: Path) -> None:
    page = (ROOT / "docs/chat-templates.md").read_text("utf-8")
    (template,) = re.findall(r"```jinja\n(.*?)```", page, flags=re.DOTALL)
    (home / "brief.jinja").write_text(template)
    said = run_all(console_commands(ROOT / "docs/chat-templates.md"), home)
    shown = next(out for command, out in said.items() if "--dry-run" in command)
    assert "<|assistant|>In short: " in shown


def test_the_page_on_selection(home: Path) -> None:
    commands = console_commands(ROOT / "docs/selection.md")
    assert len(commands) > 20
    said = run_all(commands, home)
    overall = next(out for command, out in said.items() if "top-k-overall" in command)
    assert "480 in, 50 out" in overall
    rso = next(out for command, out in said.items() if "--method rso --k 4" in command)
    assert "acceptance rate" in rso


def test_the_page_on_pairing(home: Path) -> None:
    commands = console_commands(ROOT / "docs/pairing.md")
    assert len(commands) > 25
    said = run_all(commands, home)
    matched = next(out for command, out in said.items() if "length-matched" in command)
    assert "dropped: no length match" in matched
    counted = next(out for command, out in said.items() if "--min-chars" in command)
    assert "left out: too short" in counted


@pytest.mark.vllm
def test_the_page_on_ranking_with_vllm(home: Path) -> None:
    """Under the JSON schema a model that cannot judge gives verdicts that can be read."""
    if not (home / "runs/ranking").exists():
        run_all(console_commands(ROOT / "docs/ranking.md")[:2], home)
    (said,) = run_all(console_commands(ROOT / "docs/ranking.md", "vllm"), home).values()
    assert re.search(r"scored\s+2[0-9]{2}\b", said), said


@pytest.mark.vllm
def test_the_page_on_sampling_with_vllm(said: dict[str, str], home: Path) -> None:
    commands = console_commands(SAMPLING, "vllm")
    assert commands
    assert all("10 in, 10 out" in out for out in run_all(commands, home).values())


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with vllm_serve(home / "sample_data/policy", log, name="sample_data/policy") as url:
        yield url


@pytest.mark.vllm
def test_the_page_on_sampling_with_a_server(said: dict[str, str], home: Path, server: str) -> None:
    commands = [c.replace("http://127.0.0.1:8000/v1", server) for c in console_commands(SAMPLING, "server")]
    assert commands
    assert all("10 in, 10 out" in out for out in run_all(commands, home).values())
