"""Every command that docs/ shows runs, one after the other, as its reader would run them.

They run in this process, by the console script's own entry point; the README's run in a shell (test_demo).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from shells import console_commands

DOCS = Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Pages = Callable[[list[str]], dict[str, str]]


@pytest.fixture
def run_all(prefdata: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pages:
    """`run_all(commands)`: run them where the sample data is, as in a checkout; what each has printed."""
    shutil.copytree(DOCS.parent / "sample_data", tmp_path / "sample_data", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)

    def run(commands: list[str]) -> dict[str, str]:
        printed = {}
        for command in commands:
            code, printed[command], errors = prefdata(*shlex.split(command)[1:])
            assert code == 0, f"{command}\n{errors}"
        return printed

    return run


OF_THE_SAMPLE_DATA = {
    "trl-lib/ultrafeedback-prompt": "sample_data/prompts.jsonl",
    "--limit 5000": "--limit 20",
    "Qwen/Qwen2.5-1.5B-Instruct": "sample_data/policy",
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": "sample_data/reward_model",
    "--engine vllm": "--engine transformers",
    "--max-tokens 1024": "--max-tokens 64",
}
"""What stands in for the models and data of the hub, and for a GPU, in the README's five commands."""


def test_the_five_commands_of_the_readme(run_all: Pages) -> None:
    """As shown, except that models and prompts are the sample data's."""
    text = "\n".join(console_commands(README, "gpu"))
    assert all(name in text for name in OF_THE_SAMPLE_DATA)
    for name, small in OF_THE_SAMPLE_DATA.items():
        text = text.replace(name, small)
    commands = text.splitlines()
    assert len(commands) == 5
    printed = run_all(commands)
    assert "160 in, 160 out" in printed[commands[1]]
    assert Path("runs/uf/models/dpo/model.safetensors").exists()


def test_the_run_yaml_of_the_readme(run_all: Pages) -> None:
    """Each step takes its section; numbers are written as people write them."""
    (text,) = re.findall(r"```yaml\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    Path("run.yaml").write_text(text, "utf-8")  # where the commands run
    commands = console_commands(README, "run.yaml")
    run_all(commands)
    trained = json.loads(Path("runs/yaml/models/dpo/_spec.json").read_text("utf-8"))["spec"]
    assert (trained["lr"], trained["pairing"], trained["batch_size"]) == (1e-4, "rso-4", 32)
    assert [command.split()[1] for command in commands] == list(yaml.safe_load(text))


def test_the_page_on_sampling(run_all: Pages) -> None:
    commands = console_commands(DOCS / "sampling.md")
    assert len(commands) > 20
    said = run_all(commands)
    retry = next(out for command, out in said.items() if command.endswith("--retry-truncated"))
    assert "added what was missing" in retry
    sweep = next(out for command, out in said.items() if "--sweep" in command)
    assert sweep.count("80 in, 80 out") == 3
    seen = next(out for command, out in said.items() if "sampled_messages" in command)
    assert "helpful" in seen or "assistant" in seen or "expert" in seen


def test_the_page_on_ranking(run_all: Pages) -> None:
    commands = console_commands(DOCS / "ranking.md")
    assert len(commands) > 12
    said = run_all(commands)
    fitted = next(out for command, out in said.items() if "--labelled" in command)
    assert "ece before" in fitted


def test_the_page_on_curves(run_all: Pages) -> None:
    """The tables that it shows are those that are printed."""
    page = (DOCS / "curves.md").read_text("utf-8")
    printed = "".join(run_all(console_commands(DOCS / "curves.md")).values())
    titles = re.findall(r"^(?:The best of n by|Which group's|The plan:|T=0.7:).*$", page, flags=re.MULTILINE)
    assert len(titles) == 5
    assert [title for title in titles if title not in printed] == []
    assert re.search(r"16 +T=0.7.* extrapolated ", printed)


def test_the_page_on_chat_templates(run_all: Pages) -> None:
    page = (DOCS / "chat-templates.md").read_text("utf-8")
    (template,) = re.findall(r"```jinja\n(.*?)```", page, flags=re.DOTALL)
    Path("brief.jinja").write_text(template, "utf-8")  # where the commands run
    said = run_all(console_commands(DOCS / "chat-templates.md"))
    shown = next(out for command, out in said.items() if "--dry-run" in command)
    assert "<|assistant|>In short: " in shown


def test_the_page_on_formats(run_all: Pages) -> None:
    commands = console_commands(DOCS / "formats.md")
    assert len(commands) > 5
    said = run_all(commands)
    assert "says: 0 over 1" in said[commands[0]]


def test_the_page_on_recipes(run_all: Pages) -> None:
    page = (DOCS / "recipes.md").read_text("utf-8")
    Path("my.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0], "utf-8")
    *_, planned = run_all(console_commands(DOCS / "recipes.md")).values()
    steps = planned.splitlines()
    assert [line.split("prefdata ")[1].split()[0] for line in steps] == ["ingest", "sample", "rank", "select", "train"]
    assert "-n 2 " in steps[1]


def test_the_page_on_sql(run_all: Pages) -> None:
    printed = run_all(console_commands(DOCS / "sql.md"))
    assert any("turns" in out for out in printed.values())


def test_the_page_on_selection(run_all: Pages) -> None:
    commands = console_commands(DOCS / "selection.md")
    assert len(commands) > 20
    said = run_all(commands)
    overall = next(out for command, out in said.items() if "top-k-overall" in command)
    assert "480 in, 50 out" in overall
    rso = next(out for command, out in said.items() if "--method rso --k 4" in command)
    assert "acceptance rate" in rso


def test_the_page_on_pairing(run_all: Pages) -> None:
    commands = console_commands(DOCS / "pairing.md")
    assert len(commands) > 25
    said = run_all(commands)
    matched = next(out for command, out in said.items() if "length-matched" in command)
    assert "dropped: no length match" in matched
    counted = next(out for command, out in said.items() if "--min-chars" in command)
    assert "left out: too short" in counted


@pytest.mark.vllm
def test_the_page_on_ranking_with_vllm(run_all: Pages) -> None:
    """Under the JSON schema a model that cannot judge gives verdicts that can be read."""
    page = DOCS / "ranking.md"
    said = list(run_all(console_commands(page)[:2] + console_commands(page, "vllm")).values())[-1]
    assert re.search(r"scored\s+2[0-9]{2}\b", said), said


@pytest.mark.vllm
def test_the_page_on_sampling_with_vllm(run_all: Pages) -> None:
    page = DOCS / "sampling.md"
    commands = console_commands(page, "vllm")
    assert commands
    said = run_all(console_commands(page)[:1] + commands)
    assert all("10 in, 10 out" in said[command] for command in commands)


@pytest.mark.vllm
def test_the_page_on_sampling_with_a_server(
    run_all: Pages, sample_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-tests")
    page = DOCS / "sampling.md"
    commands = [c.replace("http://127.0.0.1:8000/v1", sample_server) for c in console_commands(page, "server")]
    assert commands
    said = run_all(console_commands(page)[:1] + commands)
    assert all("10 in, 10 out" in said[command] for command in commands)


def test_the_page_on_reliability(run_all: Pages) -> None:
    commands = console_commands(DOCS / "reliability.md")
    said = run_all(["prefdata ingest runs/demo sample_data/prompts.jsonl", *commands])
    assert said[commands[0]] == "runs/demo: every file is unchanged.\n"


def test_the_page_on_training(run_all: Pages) -> None:
    said = run_all(console_commands(DOCS / "training.md"))
    made = sum("made models/" in out or "--nproc" in command for command, out in said.items())  # N print elsewhere
    assert made == len(list(Path("models").glob("*/_SUCCESS"))) > 0
    assert any('"gb_total"' in out for out in said.values())


def test_the_page_on_ppo(run_all: Pages) -> None:
    """Two steps of 32 responses each; the table of presets is that of the code."""
    from prefdata.train.ppo.presets import PRESETS

    page = DOCS / "ppo.md"
    said = list(run_all(console_commands(page)).values())
    assert "reference" in said[1]
    assert re.findall(r"^(\d),.*,(\d+)$", said[3], re.M) == [("1", "32"), ("2", "32")]
    assert [path.name for path in Path("runs/ppo/models/ppo/responses").iterdir()]
    assert re.findall(r"^- `([\w-]+)`: .*(?:20\d\d|DeepSpeed|TRL)", page.read_text("utf-8"), re.M) == list(PRESETS)


def test_the_page_on_objectives(run_all: Pages) -> None:
    page = DOCS / "objectives.md"
    for name, rows in re.findall(r"```json (\S+)\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
        Path(name).write_text(rows, "utf-8")  # where the commands run
    said = run_all(console_commands(page))
    assert sum("made models/" in out for out in said.values()) == len(list(Path("models").iterdir())) > 45
