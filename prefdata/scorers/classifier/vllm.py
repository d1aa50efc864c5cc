"""Reward models on vLLM: the same texts, the same raw logits, by its pooling runner.

vLLM applies an activation to a classifier's logits unless it is told not to (`use_activation`), and so would give
probabilities; here it is told. Token ids go in, so that a text has one begin token and no other tokenisation. What
starts and ends the engine is `engines.vllm_start`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from prefdata.chat.encoder import Chat
from prefdata.engines.vllm.launch import import_vllm, start
from prefdata.errors import ModelError
from prefdata.models.files import ModelFiles
from prefdata.scorers.classifier.base import Classifier
from prefdata.scorers.classifier.labels import Activation, Labels
from prefdata.scorers.classifier.rendering import RenderedText, TextRenderer
from prefdata.specs import VllmSpec
from prefdata.specs.chat import TemplateChoice

HANDED = 256
"""Texts inside the engine at a time, or what the engine computes at a time where that is more."""


class PoolingRewardModel(Classifier):
    """A Scorer on vLLM; see `prefdata.scorers.classifier.base.Classifier`."""

    def __init__(
        self,
        files: ModelFiles,
        spec: VllmSpec | None = None,
        *,
        label: str | None = None,
        activation: Activation = "logit",
        text_format: Path | None = None,
        choice: TemplateChoice = TemplateChoice(),
    ) -> None:
        """Start the engine, which takes half a minute or more.

        Args:
            files: what `identify` found.
            spec: how vLLM is to run it; by its defaults unless given.
            label: which label of several, by name or number; `all` makes each an output.
            activation: the raw logit, or the probability.
            text_format: a file that says how prompt and answer become text, instead of the chat template.
            choice: which chat template, with which variables.

        Raises:
            ModelError: the tokenizer cannot be loaded, or the model has several labels and none is named.
            UsageError: an option or a label that is not there, or no GPU that can do what is asked.
            InputError: the text format cannot be read.
            EngineError: vLLM cannot be imported, lacks what is needed, or cannot start.
        """
        self.labels = Labels.of(files, label, activation)
        self.outputs = self.labels.outputs
        chat = Chat.of(files, raw=text_format is not None, choice=choice)
        self.texts = TextRenderer(chat, text_format)
        if files.adapter is not None:
            raise ModelError(
                f"{files.name} is an adapter, and vllm scores with whole models alone. Use --engine transformers, or "
                "merge the adapter into its model."
            )
        self._vllm = import_vllm()
        self._params = self._vllm.PoolingParams(use_activation=False, task="classify")
        self._running = start(self._vllm, files, spec or VllmSpec(), runner="pooling")
        config = self._running.config
        self.context_length = int(config.model_config.max_model_len)
        self.vocabulary = int(config.model_config.get_vocab_size())
        self.computed = self._running.computed
        self.versions, self.notes = self._running.versions, self._running.notes
        self._most = max(HANDED, int(config.scheduler_config.max_num_seqs))

    def logits(self, rows: list[RenderedText]) -> Iterator[tuple[list[RenderedText], Tensor]]:
        """Yield the rows with their logits, as the engine finishes them; see `Classifier.logits`."""
        # Those of one prompt come together, so that the engine finds their beginning in its cache.
        together = sorted(rows, key=lambda row: row.prompt)
        with closing(self._running.answers(together, self._add, self._most)) as answers:
            for done in answers:
                found = torch.stack([output.outputs.data.float().reshape(-1).cpu() for _, output in done])
                yield [row for row, _ in done], found

    def close(self) -> None:
        """Stop the engine and its processes."""
        self._running.close()

    def _add(self, number: str, row: RenderedText) -> None:
        prompt = self._vllm.TokensPrompt(prompt_token_ids=row.ids)
        self._running.engine.add_request(number, prompt, self._params)
