"""Sequence-classification reward models on transformers: the raw logit of one label, whatever stands beside a text.

The conversation with its answer is rendered by the model's own chat template. The score is read at the last token by
the attention mask, never at the last token that is not the pad token: where pad and end token are one, that would be
the token before the end. Every distinct text is scored once, so that equal texts have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from prefdata import ids
from prefdata.engines.chat import Chat
from prefdata.engines.loading import load, pick_device, pick_dtype
from prefdata.engines.protocol import TemplateRefusal
from prefdata.model_files import ModelFiles
from prefdata.scorers.protocol import Item, Scored

WINDOW = 4000
"""Items that are pulled and sorted by length at a time."""

BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}
"""Default budgets: rows times the longest row, by kind of device."""


class RewardModel:
    """A Scorer on a reward model; see `prefdata.scorers.protocol.Scorer`."""

    outputs: tuple[str, ...] = ("",)

    def __init__(
        self, files: ModelFiles, *, device: str | None = None, dtype: str = "auto", batch_tokens: int | None = None
    ) -> None:
        """Load the model.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            EngineError: there is no such device or type.
        """
        self.model = files
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.chat = Chat.load(files.folder(), name=files.name)
        self.context_length = files.context_length or 1 << 20
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        self._net = load(AutoModelForSequenceClassification, files, self.dtype, self.device)
        self._pad = self.chat.tokenizer.pad_token_id or 0

    def score(self, items: Iterable[Item]) -> Iterator[Scored]:
        """Score every item once, a batch at a time; see the protocol."""
        stream = iter(items)
        while window := list(islice(stream, WINDOW)):
            yield from self._window(window)

    def close(self) -> None:
        """Give back the model's memory."""
        self._net = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _window(self, window: list[Item]) -> Iterator[Scored]:
        waiting: dict[str, list[str]] = {}
        for item in window:
            try:
                text = self.chat.conversation(item.messages, item.response)
            except TemplateRefusal as error:
                yield Scored(item.key, None, "refused_by_template", None, {"error": str(error)})
                continue
            waiting.setdefault(text, []).append(item.key)
        tokens = {text: self.chat.conversation_ids(text) for text in waiting}
        for batch in self._batches(tokens):
            for text, score in zip(batch, self._logits([tokens[text] for text in batch]).tolist(), strict=True):
                yield from _scored(waiting.pop(text), text, score)
        for text, keys in waiting.items():
            reason = "too_long" if tokens[text] else "empty"
            for key in keys:
                yield Scored(key, None, reason, ids.text_hash(text), {"tokens": len(tokens[text])})

    def _batches(self, tokens: dict[str, list[int]]) -> Iterator[list[str]]:
        """Texts that fit the model, the longest first, in batches of the token budget."""
        fits = [text for text, row in tokens.items() if 0 < len(row) <= self.context_length]
        batch: list[str] = []
        for text in sorted(fits, key=lambda text: (-len(tokens[text]), text)):
            if batch and (len(batch) + 1) * len(tokens[batch[0]]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch

    @torch.inference_mode()
    def _logits(self, rows: list[list[int]]) -> Tensor:
        """The raw scores of token rows, shape (B,), float32."""
        width = max(map(len, rows))
        token_ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        head = getattr(self._net, "score", None)
        if head is None:  # BERT and its kin read a pooled first token, which padding on the right does not move
            logits: Tensor = self._net(input_ids=token_ids, attention_mask=mask).logits[:, 0]
            return logits.float()
        hidden = self._backbone(input_ids=token_ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(rows), device=self.device), mask.sum(1) - 1]
        scores: Tensor = head(last)[:, 0]
        return scores.float()

    @property
    def _backbone(self) -> Any:
        return self._net.base_model


def _scored(keys: list[str], text: str, score: float) -> Iterator[Scored]:
    finite = score == score and abs(score) != float("inf")
    reason = None if finite else "nan" if score != score else "infinite"
    for key in keys:
        yield Scored(key, score if finite else None, reason, ids.text_hash(text), None)
