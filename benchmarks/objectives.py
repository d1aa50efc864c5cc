"""What the objectives do on the sample world: the papers' orderings, over three seeds.

    python benchmarks/objectives.py OUT [--seeds 0 1 2] [--samples 4]

For each seed, 16 candidates per prompt are sampled from the policy and scored by the reward model; each method is
trained on them or on the labelled preferences, with the same learning rate, batch size and number of epochs unless its
row says otherwise. Each trained policy then answers the test prompts, and the true reward is the mean over prompts.
Intervals are over seeds and prompts: a bootstrap that draws seeds, then prompts. OUT is kept: a second call continues.

Claims that are compared, each as a difference of two rows on the same prompts and seeds:

    RRHF > best-of-n SFT (arXiv:2304.05302; without its rank loss RRHF is best-of-n SFT)
    DPO on RSO pairs > DPO on direct pairs (arXiv:2309.06657)
    SLiC-HF on sampled and ranked pairs > SLiC-HF on direct pairs (arXiv:2305.10425)
    KTO on labels is near DPO on pairs (arXiv:2402.01306)
    IPO drifts less from the reference than DPO on deterministic labels over several epochs (arXiv:2310.12036)
    length-debiased reward models correlate less with length (arXiv:2310.05199)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from prefdata.storage.run import Run

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "sample_data"
TRUTH = f"{DATA / 'world.py'}:true_reward"
COMMON = ["--model", str(DATA / "policy"), "--lr", "2e-4", "--batch-size", "32"]

METHODS: dict[str, list[str]] = {
    "sft best-of-16": ["sft", "RUN", "--selector", "best-of-16"],
    "rrhf": ["dpo", "RUN", "--loss", "rrhf", "--input", "groups"],
    "rrhf, no rank loss": ["dpo", "RUN", "--loss", "rrhf", "--rank-weight", "0", "--input", "groups"],
    "dpo, direct pairs": ["dpo", "PREFERENCES"],
    "dpo, rso pairs": ["dpo", "RUN", "--pairing", "rso"],
    "slic-hf, direct pairs": ["dpo", "PREFERENCES", "--loss", "slic-hf"],
    "slic-hf, sampled and ranked": ["dpo", "RUN", "--loss", "slic-hf", "--pairing", "random-ranked"],
    "kto, direct labels": ["kto", "PREFERENCES"],
    "dpo, deterministic, 4 epochs": ["dpo", "DETERMINISTIC", "--epochs", "4"],
    "ipo, deterministic, 4 epochs": ["dpo", "DETERMINISTIC", "--epochs", "4", "--loss", "ipo-sum"],
}
CLAIMS = (
    ("rrhf", "sft best-of-16"),
    ("rrhf", "rrhf, no rank loss"),
    ("dpo, rso pairs", "dpo, direct pairs"),
    ("slic-hf, sampled and ranked", "slic-hf, direct pairs"),
    ("kto, direct labels", "dpo, direct pairs"),
    ("ipo, deterministic, 4 epochs", "dpo, deterministic, 4 epochs"),
)
REWARD_MODELS = {"bradley-terry": [], "poe-length": ["--loss", "poe-length"]}


def prefdata(*arguments: object) -> None:
    """Run a command of prefdata; its output goes to stderr."""
    subprocess.run([sys.executable, "-m", "cli", *map(str, arguments)], check=True, cwd=ROOT, stdout=sys.stderr)


def prepare(run: Path, seed: int) -> None:
    """Sample, score, select and pair what the methods train on."""
    prefdata("ingest", run, DATA / "prompts.jsonl")
    prefdata(
        "sample", run, "--model", DATA / "policy", "-n", 16, "--max-tokens", 96, "--seed", seed, "--name", "policy"
    )
    prefdata("rank", run, "--reward-model", DATA / "reward_model", "--name", "reward")
    prefdata("rank", run, "--function", TRUTH, "--name", "truth")
    of_policy = ["--scorer", "reward", "--sampler", "policy"]
    prefdata("select", run, "--method", "best-of-n", *of_policy, "--name", "best-of-16")
    prefdata("select", run, "--method", "rso", "--k", 8, *of_policy, "--seed", seed, "--name", "rso")
    prefdata("pair", run, "--selector", "rso", "--strategy", "first-round", "--seed", seed, "--name", "rso")
    prefdata("pair", run, "--selector", "all", *of_policy, "--as", "groups", "--name", "groups")
    random_pairs = ["--strategy", "random-labelled", "--per-prompt", 4, "--seed", seed]
    prefdata("pair", run, "--selector", "all", *of_policy, *random_pairs, "--name", "random-ranked")


def deterministic(out: Path) -> Path:
    """Write the preferences whose label is right: each prompt's order never contradicts itself."""
    path = out / "deterministic.jsonl"
    rows = [json.loads(line) for line in (DATA / "preferences.jsonl").read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["true_margin"] > 0))
    return path


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def train_and_answer(run: Path, name: str, seed: int, samples: int, files: dict[str, Path]) -> None:
    """Train one method, sample its answers to the test prompts and score them by the truth."""
    command, data, *settings = METHODS[name]
    out = run / "models" / slug(name)
    prefdata("train", command, files.get(data, run), "--out", out, *COMMON, "--seed", seed, *settings)
    answers = ["-n", samples, "--max-tokens", 96, "--split", "test", "--seed", seed, "--name", slug(name)]
    prefdata("sample", run, "--model", out, *answers)


def true_rewards(run: Path, sampler: str, samples: int) -> pl.DataFrame:
    """Return the mean true reward and the mean number of characters of each test prompt."""
    table = Run(run)
    test = pl.from_arrow(table.partitions("prompts")[0].read()).filter(pl.col("split") == "test")["prompt_id"]
    scores = pl.from_arrow(table.partition("scores", "truth").read())
    own = scores.filter(
        (pl.col("sampler") == sampler) & pl.col("prompt_id").is_in(test.to_list()) & (pl.col("sample_index") < samples)
    )
    return own.group_by("prompt_id").agg(pl.col("score").mean(), pl.col("chars").mean()).sort("prompt_id")


def interval(values: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """Return the 95% interval of the mean of [seeds, prompts], both drawn with replacement."""
    random = np.random.default_rng(0)
    seeds, prompts = values.shape
    rows = random.integers(0, seeds, (draws, seeds))
    columns = random.integers(0, prompts, (draws, prompts))
    means = np.array([values[r][:, c].mean() for r, c in zip(rows, columns, strict=True)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def length_correlations(out: Path, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Train reward models and return, per seed, the correlation of score and characters within prompts."""
    found: dict[str, list[float]] = {name: [] for name in REWARD_MODELS}
    for seed in seeds:
        run = out / f"seed-{seed}"
        for name, settings in REWARD_MODELS.items():
            model = run / "models" / f"rm-{name}"
            prefdata("train", "rm", DATA / "preferences.jsonl", "--out", model, *COMMON, "--seed", seed, *settings)
            prefdata("rank", run, "--reward-model", model, "--sampler", "policy", "--name", f"rm-{name}")
            rows = pl.from_arrow(Run(run).partition("scores", f"rm-{name}").read()).drop_nulls("score")
            centred = rows.select(pl.col("score", "chars") - pl.col("score", "chars").mean().over("prompt_id"))
            found[name].append(float(centred.select(pl.corr("score", "chars")).item()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=4)
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    files = {"PREFERENCES": DATA / "preferences.jsonl", "DETERMINISTIC": deterministic(out)}
    for seed in arguments.seeds:
        run = out / f"seed-{seed}"
        prepare(run, seed)
        for name in METHODS:
            train_and_answer(run, name, seed, arguments.samples, files)
        prefdata("rank", run, "--function", TRUTH, "--name", "truth")

    rewards: dict[str, np.ndarray] = {}
    print(f"\n{'policy':<32} {'true reward':>11} {'95% interval':>18} {'chars':>6}")
    for name in ("policy", *METHODS):
        frames = [true_rewards(out / f"seed-{s}", slug(name), arguments.samples) for s in arguments.seeds]
        rewards[name] = np.array([frame["score"].to_numpy() for frame in frames])
        low, high = interval(rewards[name])
        chars = np.mean([frame["chars"].mean() for frame in frames])
        print(f"{name:<32} {rewards[name].mean():>11.3f} {f'{low:.3f} to {high:.3f}':>18} {chars:>6.0f}")
    print("\ndifference in true reward")
    for better, worse in CLAIMS:
        difference = rewards[better] - rewards[worse]
        low, high = interval(difference)
        print(f"{better} - {worse}: {difference.mean():+.3f} ({low:+.3f} to {high:+.3f})")
    print("\ncorrelation of reward and characters within prompts, per seed")
    for name, values in length_correlations(out, arguments.seeds).items():
        print(f"{name:<16} {np.mean(values):+.3f}  {' '.join(f'{value:+.3f}' for value in values)}")


if __name__ == "__main__":
    main()
