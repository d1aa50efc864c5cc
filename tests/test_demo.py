"""The demo, whole: every step on the sample data, the picture it must show, the README's commands on its result.

Where the environment variable PREFDATA_DEMO names a run that `make demo` has just made, that one is tested.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import polars as pl
import pytest
from shells import console_commands, shell

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's run in runs/demo and the sample data beside it, as a checkout has them."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "sample_data", home / "sample_data", ignore=shutil.ignore_patterns("__pycache__"))
    if made := os.environ.get("PREFDATA_DEMO"):
        shutil.copytree(made, home / "runs/demo")
        return home
    done = shell("prefdata demo", home)
    assert done.returncode == 0, done.stderr
    return home


def test_the_picture_of_the_literature(home: Path) -> None:
    """reference < DPO ~ best-of-16, by the truth that neither the reward model nor DPO has seen."""
    command = "prefdata eval policies runs/demo --scorer truth --scorer reward --baseline policy"
    done = shell(f"{command} --policy best-of-16 --policy dpo --format json", home)
    rows = {row["policy"]: row for row in json.loads(done.stdout)}
    reference, best, dpo = rows["policy"], rows["best-of-16"], rows["dpo"]
    assert reference["prompts"] == best["prompts"] == dpo["prompts"] == 150
    assert dpo["win_rate"] >= 0.70
    assert dpo["low"] > 0.67
    assert (best["compared_as"], dpo["compared_as"]) == ("best-of-15", None)
    assert 0.65 < best["low"] < best["win_rate"] < best["high"] < 15 / 16
    assert reference["mean_truth"] + 0.3 < dpo["mean_truth"] < best["mean_truth"] + 0.2
    assert 0.5 < dpo["mean_tokens"] / reference["mean_tokens"] < 2.0


def test_every_table_keeps_its_promises(home: Path) -> None:
    def table(name: str) -> pl.DataFrame:
        return pl.read_parquet(f"{home}/runs/demo/{name}/*/part-*.parquet", hive_partitioning=True)

    candidates, scores, pairs = table("candidates"), table("scores"), table("pairs")
    assert candidates["candidate_id"].is_unique().all()
    assert candidates.filter(pl.col("sampler") == "policy").height == 16 * table("prompts").height
    assert (scores.group_by("scorer").len()["len"] == candidates.height).all()
    assert (pairs["margin"] > 0).all()
    assert pairs.join(candidates, left_on="chosen_id", right_on="candidate_id", how="anti").height == 0
    joined = pairs.join(scores.filter(pl.col("scorer") == "reward"), left_on="chosen_id", right_on="candidate_id")
    assert (joined["score"] == joined["chosen_score"]).all()
    assert (table("selections").filter(pl.col("selector") == "rso-8").group_by("prompt_id").len()["len"] <= 8).all()
    for success in (home / "runs/demo").rglob("_SUCCESS"):
        report = json.loads(success.read_text())["report"]
        assert report["rows_in"] == report["rows_out"] + sum(report["dropped"].values())


def test_again_does_nothing(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "runs").rglob("*")}
    done = shell("prefdata demo", home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing to do") == 13
    assert {path: path.stat().st_mtime_ns for path in (home / "runs").rglob("*")} == before


def test_another_batch_size_gives_the_same(home: Path) -> None:
    """Texts by other batches: at most one in a thousand may differ by float32 rounding; scores within 1e-5."""
    run, other = home / "runs/demo", home / "runs/other"
    shutil.copytree(run / "prompts", other / "prompts")
    sample = "prefdata sample runs/other --model sample_data/policy -n 16 --max-tokens 96 --split test --name policy"
    assert shell(f"{sample} --batch-tokens 3000", home).returncode == 0
    columns = "candidate_id, text, token_ids"
    query = f"select {columns} from read_parquet('{{}}/candidates/sampler=policy/part-*.parquet')"
    mine = duckdb.sql(query.format(other)).pl()
    whole = duckdb.sql(query.format(run)).pl()
    both = mine.join(whole, on="candidate_id", suffix="_whole")
    assert both.height == mine.height == 16 * 150
    different = both.filter(pl.col("text") != pl.col("text_whole")).height
    assert different <= both.height / 1000
    rank = "prefdata rank runs/other --reward-model sample_data/reward_model --name reward --batch-tokens 700"
    assert shell(rank, home).returncode == 0
    query = "select candidate_id, text_hash, score from read_parquet('{}/scores/scorer=reward/part-*.parquet')"
    scored = (
        duckdb.sql(query.format(other)).pl().join(duckdb.sql(query.format(run)).pl(), on="candidate_id", suffix="_w")
    )
    same = scored.filter(pl.col("text_hash") == pl.col("text_hash_w"))
    assert (same["score"] - same["score_w"]).abs().max() < 1e-5


def test_the_commands_of_the_readme(home: Path) -> None:
    commands = [command for command in console_commands(ROOT / "README.md") if not command.startswith("prefdata demo")]
    assert len(commands) >= 12
    pair = shell("prefdata sql runs/demo 'select pair_id from pairs limit 1' --format csv", home).stdout.split()[1]
    for command in commands:
        done = shell(command.replace("PAIR_ID", pair), home)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_python_of_the_readme(home: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=home, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr


def test_the_model_loads_elsewhere(home: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = home / "runs/demo/models/dpo"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Write a review of a comedy about a stray dog."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=64, do_sample=False)
    assert len(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)) > 20


def test_the_export_loads_elsewhere(home: Path) -> None:
    import datasets

    loaded = datasets.load_dataset(str(home / "runs/demo/exports/trl"), cache_dir=str(home / "cache"))
    assert loaded["train"].num_rows > 500
    assert loaded["train"][0]["chosen"][0]["role"] == "assistant"
