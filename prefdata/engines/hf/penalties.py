"""Penalties on a model's logits, from the tokens of a row's prompt and response so far.

The order is vLLM's: end tokens that come too early, then the repetition penalty, then the presence penalty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from prefdata.engines.protocol import Sampling


@dataclass(frozen=True)
class Penalties:
    """The penalties of a batch, a row each; None where no row has that one.

    Attributes:
        ends: (E,) the tokens that end a response.
        min_tokens: (B,) tokens that come before an end token.
        repetition: (B, 1) float64 divisor of the logits (a factor where they are negative) of tokens that occurred.
        presence: (B, 1) float64 subtracted from the logits of tokens in the response.
        prompt: (B, V) bool, the tokens of each prompt.
        answer: (B, V) bool, the tokens of each response so far.
    """

    ends: Tensor
    min_tokens: Tensor | None
    repetition: Tensor | None
    presence: Tensor | None
    prompt: Tensor | None
    answer: Tensor | None

    @classmethod
    def of(
        cls, samplings: Sequence[Sampling], prompts: Sequence[Sequence[int]], ends: Tensor, vocabulary: int
    ) -> Self | None:
        """Return the penalties of these rows, on the device of `ends`; None where no row has any."""
        device, rows = ends.device, len(samplings)

        def column(values: list[float], none: float) -> Tensor | None:
            if all(value == none for value in values):
                return None
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        min_tokens = torch.tensor([s.min_tokens for s in samplings], device=device)
        repetition = column([s.repetition_penalty for s in samplings], 1.0)
        presence = column([s.presence_penalty for s in samplings], 0.0)
        early = min_tokens if len(ends) and bool((min_tokens > 0).any()) else None
        if early is None and repetition is None and presence is None:
            return None
        prompt = None if repetition is None else torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
        if prompt is not None:
            for row, ids in enumerate(prompts):
                prompt[row, torch.tensor(ids, device=device)] = True
        answer = None
        if repetition is not None or presence is not None:
            answer = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
        return cls(ends, early, repetition, presence, prompt, answer)

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """Return the logits (B, V) of the response's token `step` (from 0) after the penalties, float64, a copy."""
        logits = logits.double()
        if self.min_tokens is not None and bool((early := self.min_tokens > step).any()):
            barred = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            barred[self.ends] = True
            logits = logits.masked_fill(early[:, None] & barred, -math.inf)
        if self.repetition is not None:
            assert self.prompt is not None
            assert self.answer is not None
            lowered = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
            logits = torch.where(self.prompt | self.answer, lowered, logits)
        if self.presence is not None:
            assert self.answer is not None
            logits = logits - self.presence * self.answer
        return logits

    def note(self, tokens: Tensor) -> None:
        """Remember the tokens (B,) that the rows have just sampled."""
        if self.answer is not None:
            self.answer.scatter_(1, tokens[:, None], True)

    def rows(self, index: Tensor) -> Self:
        """Return the penalties of some of the rows, in that order; a row may occur several times."""

        def picked(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            min_tokens=picked(self.min_tokens),
            repetition=picked(self.repetition),
            presence=picked(self.presence),
            prompt=picked(self.prompt),
            answer=picked(self.answer),
        )
