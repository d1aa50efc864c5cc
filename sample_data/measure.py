"""Measure the shipped models against the truth: what the README of this folder says, and the tests hold.

python -m prefdata.sample_data.measure [--samples 16]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from prefdata.engines.open import open_generator
from prefdata.engines.protocol import Completion, Request, Sampling
from prefdata.ids import seed
from prefdata.models.files import identify
from prefdata.scorers.classifier.hf import RewardModel
from prefdata.scorers.protocol import ScoringItem
from prefdata.specs import ModelSpec

from .world import true_reward_parts

FOLDER = Path(__file__).parent
MAX_TOKENS = 72
"""Longer than nearly every answer in the corpus."""


def heldout_prompts() -> list[list[dict[str, str]]]:
    """The conversations of the test split, in the file's order."""
    return [row["messages"] for row in _rows("prompts") if row["split"] == "test"]


def reward_accuracy() -> float:
    """The share of held-out preferences, all in their true order, in which the reward model scores chosen higher."""
    rows = _rows("heldout_preferences")
    items = [
        ScoringItem(f"{number}/{side}", tuple(row["prompt"]), row[side][0]["content"], truncated=False)
        for number, row in enumerate(rows)
        for side in ("chosen", "rejected")
    ]
    scores: dict[str, float] = {}
    for scored in RewardModel(identify(str(FOLDER / "reward_model"), "reward-model"), device="cpu").score(items):
        assert scored.score is not None, scored
        scores[scored.key] = scored.score
    return fmean(scores[f"{n}/chosen"] > scores[f"{n}/rejected"] for n in range(len(rows)))


def policy_quality(prompts: Sequence[Sequence[dict[str, str]]], samples: int) -> dict[str, float]:
    """The policy's answers at temperature 1: means of the true reward and its parts, and the shares named.

    `well_formed`: of answers whose every sentence is; `ended`: of answers that came to their end token; `distinct`: of
    different texts among all; `best`: the mean of each prompt's highest true reward.
    """
    answers = list(sample_policy(prompts, samples))
    parts = [true_reward_parts(prompts[number], answer.text) for number, answer in answers]
    rewards = [sum(part.values()) for part in parts]
    best = [max(r for r, (n, _) in zip(rewards, answers, strict=True) if n == number) for number in range(len(prompts))]
    return {
        "true_reward": fmean(rewards),
        "best": fmean(best),
        **{name: fmean(part[name] for part in parts) for name in parts[0]},
        "well_formed": fmean(part["form"] == 0 for part in parts),
        "ended": fmean(answer.finish_reason == "stop" for _, answer in answers),
        "distinct": len({answer.text for _, answer in answers}) / len(answers),
        "tokens": fmean(len(answer.token_ids or ()) for _, answer in answers),
    }


def sample_policy(prompts: Sequence[Sequence[dict[str, str]]], samples: int) -> Iterator[tuple[int, Completion]]:
    """Answers of the shipped policy, each with its prompt's number."""
    generator = open_generator(
        ModelSpec(model=str(FOLDER / "policy"), device="cpu"),
        identify(str(FOLDER / "policy"), "causal-lm"),
        "transformers",
    )
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=MAX_TOKENS)
    requests = (
        Request(f"{number}/{index}", generator.render(prompt), seed(0, number, index), sampling)
        for number, prompt in enumerate(prompts)
        for index in range(samples)
    )
    for answer in generator.generate(requests):
        assert isinstance(answer, Completion), answer
        yield int(answer.key.split("/")[0]), answer
    generator.close()


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m prefdata.sample_data.measure", description=__doc__)
    parser.add_argument("--samples", type=int, default=16, help="answers to each held-out prompt")
    said = parser.parse_args()
    print(f"reward model: accuracy on held-out preferences in their true order {reward_accuracy():.3f}")
    print("policy, held-out prompts, temperature 1:")
    for name, value in policy_quality(heldout_prompts(), said.samples).items():
        print(f"  {name:12} {value:7.3f}")


if __name__ == "__main__":
    main()
