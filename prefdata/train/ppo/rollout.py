"""Rollouts: responses of the policy to a run's prompts, their scores, and their rows in the run."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prefdata import ids
from prefdata.chat.template import TemplateRefusal
from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Completion, Generator, Rejection, Request, Sampling
from prefdata.errors import InputError
from prefdata.models.files import ModelFiles
from prefdata.models.loading import attention_settings
from prefdata.scorers.protocol import Score, ScoringItem
from prefdata.specs.chat import TemplateChoice
from prefdata.train.batches import Example
from prefdata.train.models import LoadedModel
from prefdata.train.ppo.rewards import Rewarder, score_details
from prefdata.train.ppo.specs import PpoSpec

if TYPE_CHECKING:
    from prefdata.storage.run import Partition

Row = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """The responses of one step that have a score.

    Attributes:
        examples: prompts, each with its scored responses as they were sampled: the end token is the last one, if there
            is one. A prompt without a scored response is not here.
        responses: the most that a prompt can have, `K`.
        scores: `[P, K]` of the responses, as the scorer gave them; 0 where there is none.
        truncated: `[P, K]` whether a response has no end token.
        present: `[P, K]` whether there is such a response; those that are there come first.
        unscored: responses that are left out, by reason.
        members: where several scorers make the reward, the scores of each over all responses, NaN where it has none.
        rows: the responses' rows of the table of candidates.
        stored: the rows of scores, by the name of a scorer of `members`, and the rewards under "".
    """

    examples: list[Example]
    responses: int
    scores: Tensor
    truncated: Tensor
    present: Tensor
    unscored: Counter[str]
    members: dict[str, Tensor]
    rows: list[Row]
    stored: dict[str, list[Row]]


class PolicyGenerator(TransformersGenerator):
    """Samples from a policy in training, as it is at each call.

    Args:
        files: the model that training started from.
        loaded: the policy.
        choice: its chat template.
    """

    def __init__(self, files: ModelFiles, loaded: LoadedModel, choice: TemplateChoice) -> None:
        self._loaded = loaded
        with sampling_attention(loaded.model):
            super().__init__(files, choice=choice, device=str(loaded.device), dtype="float32", net=loaded.model)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request once."""
        self._net.eval()
        with sampling_attention(self._net), self._loaded.precision():
            return iter(list(super().generate(requests)))


@contextmanager
def sampling_attention(model: Any) -> Iterator[None]:
    """Let a model in training use the attention that generation needs: that of packed batches keeps no cache."""
    theirs = model.config._attn_implementation
    model.set_attn_implementation(attention_settings(model.config).get("attn_implementation", "sdpa"))
    try:
        yield
    finally:
        model.set_attn_implementation(theirs)


class Sampler:
    """Makes a step's rollout: samples, scores, and lists the rows for the run.

    Args:
        generator: the policy, as it is at each call.
        rewarder: what rewards.
        spec: the settings.
        prompts: rows of the run's prompts.
        fingerprint: id of the training, which names its candidates.

    Attributes:
        dropped: prompts that are left out, by reason.

    Raises:
        InputError: see `usable_prompts`.
    """

    def __init__(
        self, generator: Generator, rewarder: Rewarder, spec: PpoSpec, prompts: Sequence[Row], fingerprint: str
    ) -> None:
        self._generator, self._rewarder, self._spec = generator, rewarder, spec
        self._fingerprint = fingerprint
        self._sampling = Sampling(spec.temperature, 1.0, 0, spec.max_tokens)
        self._prompts, self._ids, self.dropped = usable_prompts(generator, spec, prompts)

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return len(self._prompts)

    def __call__(self, step: int, index: Sequence[int]) -> Rollout:
        """Return the rollout of the prompts at `index` in a step (from 0)."""
        rows = {row["candidate_id"]: row for place in index for row in self._rows(step, place)}
        place_of = {self._prompts[place]["prompt_id"]: place for place in index}
        requests = [
            Request(key, self._ids[place_of[row["prompt_id"]]], row["seed"], self._sampling)
            for key, row in rows.items()
        ]
        for answer in self._generator.generate(requests):
            rows[answer.key] |= _answered(answer)
        answered = [row for row in rows.values() if row["status"] == "ok"]
        prompts = [self._prompts[place_of[row["prompt_id"]]] for row in answered]
        items = [_item(row, prompt) for row, prompt in zip(answered, prompts, strict=True)]
        scores = self._rewarder.score(items, prompts)
        stored = {
            name: [_scored(row, found.get(key), self._spec.name) for key, row in rows.items()]
            for name, found in scores.items()
        }
        return self._rollout(index, list(rows.values()), stored)

    def prompt_text(self, prompt_id: str) -> str:
        """Return the messages of a prompt, one after the other."""
        (messages,) = (row["messages"] for row in self._prompts if row["prompt_id"] == prompt_id)
        return " ".join(str(message["content"]) for message in messages)

    def _rows(self, step: int, place: int) -> list[Row]:
        spec, prompt_id, model = self._spec, self._prompts[place]["prompt_id"], self._generator.model
        fixed = {"prompt_id": prompt_id, "round": step + 1, "model": model.name, "model_revision": model.revision}
        fixed |= {
            "engine": self._generator.name,
            "temperature": spec.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
        }
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

    def _rollout(self, index: Sequence[int], candidates: list[Row], stored: dict[str, list[Row]]) -> Rollout:
        k, unscored = self._spec.responses, Counter[str]()
        examples: list[Example] = []
        scores, truncated, present = (torch.zeros(len(index), k) for _ in range(3))
        for number, place in enumerate(index):
            rows = list(zip(candidates, stored[""], strict=True))[number * k : (number + 1) * k]
            unscored.update(given["reason"] for _, given in rows if given["score"] is None)
            scored = [(row, given["score"]) for row, given in rows if given["score"] is not None]
            if not scored:
                continue
            responses = tuple(np.array(row["token_ids"], dtype=np.int32) for row, _ in scored)
            at = len(examples), slice(len(scored))
            scores[at] = torch.tensor([score for _, score in scored])
            truncated[at] = torch.tensor([float(row["finish_reason"] == "length") for row, _ in scored])
            present[at] = 1
            examples.append(Example(np.array(self._ids[place], dtype=np.int32), responses))
        count = len(examples)
        tables = scores[:count], truncated[:count] > 0, present[:count] > 0
        members = {
            name: torch.tensor([math.nan if row["score"] is None else row["score"] for row in rows])
            for name, rows in stored.items()
            if name
        }
        return Rollout(examples, k, *tables, unscored, members, candidates, stored)


def usable_prompts(
    generator: Generator, spec: PpoSpec, prompts: Sequence[Row]
) -> tuple[list[Row], list[tuple[int, ...]], Counter[str]]:
    """Return the prompts that can be sampled, their token ids, and how many are left out, by reason.

    Raises:
        InputError: the chat template refuses one, or it does not fit the model's context with `max_tokens`, and such
            prompts are not to be left out; or none can be sampled.
    """
    rows, ids_of, dropped = list[Row](), list[tuple[int, ...]](), Counter[str]()
    most = (generator.context_length or sys.maxsize) - spec.max_tokens
    for row in prompts:
        try:
            tokens = generator.render(row["messages"], row["tools"])
            if len(tokens) > most:
                raise TooLong(f"it has {len(tokens)} tokens, and --max-tokens {spec.max_tokens} leaves {max(most, 0)}.")
        except (TemplateRefusal, TooLong) as error:
            if spec.on_bad_prompts == "error":
                raise InputError(f"prompt {row['prompt_id']}: {error} Or give --on-bad-prompts drop.") from None
            dropped[error.reason] += 1
            continue
        rows.append(row)
        ids_of.append(tokens)
    if not rows:
        raise InputError(f"no prompt can be sampled ({', '.join(f'{why} {n}' for why, n in dropped.items())}).")
    return rows, ids_of, dropped


class TooLong(InputError):
    """A prompt that does not fit the model's context with the response."""

    reason = "too_long"


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


def _item(row: Row, prompt: Row) -> ScoringItem:
    messages, response = ids.continued(prompt["messages"], row["text"])
    more = {name: prompt.get(name) for name in ("reference", "metadata", "tools")}
    return ScoringItem(row["candidate_id"], tuple(messages), response, row["finish_reason"] == "length", **more)


def _scored(row: Row, score: Score | None, sampler: str) -> Row:
    """Return the row of scores of a candidate; without a response its status is the reason."""
    kept = {name: row[name] for name in ("candidate_id", "prompt_id", "sample_index", "round", "finish_reason")}
    kept |= {"text_key": ids.text_key(row["text"]), "chars": ids.chars(row["text"]), "sampler": sampler}
    if score is None:
        return {**kept, "score": None, "reason": row["status"]}
    details = score_details(score)
    return {**kept, "score": score.score, "reason": score.reason, "text_hash": score.text_hash, "details": details}


def store(partition: Partition, rows: Sequence[Row]) -> None:
    """Append a step's rows to a partition of the run."""
    partition.append(partition.table.from_rows([dict(row) for row in rows]))
