"""Rollouts: responses of the policy to a run's prompts, their scores, and their rows in the run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prefdata import ids
from prefdata.engines.protocol import Completion, Generator, Rejection, Request, Sampling
from prefdata.errors import UsageError
from prefdata.scorers.protocol import Score, Scorer, ScoringItem
from prefdata.train.batches import Example
from prefdata.train.ppo.specs import PpoSpec

if TYPE_CHECKING:
    from prefdata.storage.run import Partition

Row = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """The responses of one step.

    Attributes:
        examples: each prompt with its K responses, as sampled: the end token is the last one where there is one.
        scores: `[P, K]` of the responses, as the scorer gave them.
        truncated: `[P, K]` whether a response has no end token.
        left_out: prompts of which a response or its score is missing, and that are not in `examples`.
        reason: why the first of these is left out.
    """

    examples: list[Example]
    scores: Tensor
    truncated: Tensor
    left_out: int = 0
    reason: str | None = None


class Sampler:
    """Makes a step's rollout: samples, scores and stores.

    Args:
        generator: the policy, as it is now whenever it is asked.
        scorer: what rewards.
        spec: the settings.
        prompts: rows of the run's prompts.
        fingerprint: id of the training, which names its candidates.
    """

    def __init__(
        self, generator: Generator, scorer: Scorer, spec: PpoSpec, prompts: Sequence[Row], fingerprint: str
    ) -> None:
        self._generator, self._scorer, self._spec = generator, scorer, spec
        self._prompts, self._fingerprint = prompts, fingerprint
        self._ids = [generator.render(row["messages"], row["tools"]) for row in prompts]
        self._sampling = Sampling(1.0, 1.0, 0, spec.max_tokens)
        if scorer.outputs != ("",):
            raise UsageError("--reward: the scorer has several outputs. Name one of them, as rank's --label does.")
        for row, prompt in zip(prompts, self._ids, strict=True):
            if generator.context_length is not None and len(prompt) + spec.max_tokens > generator.context_length:
                raise UsageError(
                    f"prompt {row['prompt_id']} has {len(prompt)} tokens: with --max-tokens {spec.max_tokens} it "
                    f"does not fit the model's {generator.context_length}. Lower --max-tokens or leave it out."
                )

    def __call__(self, step: int, index: Sequence[int]) -> tuple[Rollout, list[Row], list[Row]]:
        """Return the rollout of the prompts at `index` in a step (from 0), and its rows of candidates and scores."""
        rows = {row["candidate_id"]: row for place in index for row in self._rows(step, place)}
        place_of = {row["prompt_id"]: place for place in index for row in [self._prompts[place]]}
        requests = [
            Request(key, self._ids[place_of[row["prompt_id"]]], row["seed"], self._sampling)
            for key, row in rows.items()
        ]
        for answer in self._generator.generate(requests):
            rows[answer.key] |= _answered(answer)
        scores = {score.key: score for score in self._scorer.score(self._items(rows.values(), place_of))}
        candidates = list(rows.values())
        stored = [_scored(row, scores.get(row["candidate_id"])) for row in candidates]
        return self._rollout(index, candidates, stored), candidates, stored

    def _rows(self, step: int, place: int) -> list[Row]:
        spec, prompt_id, model = self._spec, self._prompts[place]["prompt_id"], self._generator.model
        fixed = {"prompt_id": prompt_id, "round": step + 1, "model": model.name, "model_revision": model.revision}
        fixed |= {"engine": self._generator.name, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        fixed |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "min_tokens": 0, "max_tokens": spec.max_tokens}
        fixed |= {"prompt_tokens": len(self._ids[place])}
        return [
            {
                **fixed,
                "candidate_id": ids.candidate_id(prompt_id, self._fingerprint, number),
                "sample_index": number,
                "seed": ids.seed(spec.seed, prompt_id, self._fingerprint, number),
            }
            for number in range(step * spec.responses, (step + 1) * spec.responses)
        ]

    def _items(self, rows: Any, place_of: dict[str, int]) -> list[ScoringItem]:
        items = []
        for row in rows:
            if row["status"] == "ok":
                prompt = self._prompts[place_of[row["prompt_id"]]]
                messages, response = ids.continued(prompt["messages"], row["text"])
                said = {name: prompt.get(name) for name in ("reference", "metadata", "tools")}
                truncated = row["finish_reason"] == "length"
                items.append(ScoringItem(row["candidate_id"], tuple(messages), response, truncated, **said))
        return items

    def _rollout(self, index: Sequence[int], candidates: list[Row], stored: list[Row]) -> Rollout:
        k = self._spec.responses
        examples, scores, truncated, reasons = [], [], [], []
        for number, place in enumerate(index):
            rows, given = candidates[number * k : (number + 1) * k], stored[number * k : (number + 1) * k]
            missing = [row["reason"] for row in given if row["score"] is None]
            reasons += missing[:1]
            if missing:
                continue
            responses = tuple(np.array(row["token_ids"], dtype=np.int32) for row in rows)
            examples.append(Example(np.array(self._ids[place], dtype=np.int32), responses))
            scores.append([row["score"] for row in given])
            truncated.append([row["finish_reason"] == "length" for row in rows])
        first = reasons[0] if reasons else None
        return Rollout(examples, torch.tensor(scores), torch.tensor(truncated), len(reasons), first)


def _answered(answer: Completion | Rejection) -> Row:
    if isinstance(answer, Rejection):
        return {"status": answer.status, "detail": answer.detail, "finish_reason": None, "text": None}
    tokens = answer.token_ids or ()
    return {
        "status": "ok",
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "completion_tokens": len(tokens),
        "logprob_sum": answer.logprob_sum,
    }


def _scored(row: Row, score: Score | None) -> Row:
    """Make a candidate's row of scores; without a response its status is the reason."""
    kept = {name: row[name] for name in ("candidate_id", "prompt_id", "sample_index", "round", "finish_reason")}
    kept |= {"text_key": ids.text_key(row["text"]), "chars": ids.chars(row["text"])}
    if score is None:
        return {**kept, "score": None, "reason": row["status"]}
    sound = score.score is not None and math.isfinite(score.score)
    details = None if score.details is None else json.dumps(score.details, ensure_ascii=False)
    said = {"reason": score.reason if sound or score.reason else "nan", "text_hash": score.text_hash}
    return {**kept, "score": score.score if sound else None, "details": details, **said}


def store(partition: Partition, rows: Sequence[Row]) -> None:
    """Append a step's rows to a partition of the run."""
    partition.append(partition.table.from_rows([dict(row) for row in rows]))
