"""Reward models on vLLM: the same texts, the same raw logits, by its pooling runner.

vLLM applies an activation to a classifier's logits unless it is told not to (`use_activation`), and so would give
probabilities; here it is told. Token ids go in, so that a text has one begin token and no other tokenisation. What
starts and ends the engine is `engines.vllm_start`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefdata.engines.chat import Chat
from prefdata.engines.vllm_start import broken, import_vllm, start, untested, versions
from prefdata.model_files import ModelFiles
from prefdata.scorers.classifier import Classifier
from prefdata.scorers.labels import Activation, Labels
from prefdata.scorers.texts import Row, Texts

HANDED = 256
"""Texts inside the engine at a time, or what the engine computes at a time where that is more."""


class PoolingRewardModel(Classifier):
    """A Scorer on vLLM; see `prefdata.scorers.classifier.Classifier`."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        dtype: str = "auto",
        label: str | None = None,
        activation: Activation = "logit",
        text_format: Path | None = None,
        context_length: int | None = None,
        gpu_memory_utilization: float | None = None,
        tensor_parallel_size: int = 1,
        enable_prefix_caching: bool | None = None,
        max_num_seqs: int | None = None,
        batch_invariant: bool = False,
        quantization: str | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        """Start the engine, which takes half a minute or more; the settings are those of `VllmGenerator`.

        Args:
            files: what `identify` found.
            dtype: `auto` is float32 on a CPU and the model's own type on a GPU.
            label: which label of several, by name or number; `all` makes each an output.
            activation: the raw logit, or the probability.
            text_format: a file that says how prompt and answer become text, instead of the chat template.
            context_length: use less of the context than the model was made for.
            gpu_memory_utilization: share of a GPU's memory to take.
            tensor_parallel_size: GPUs that share the model.
            enable_prefix_caching: compute a shared beginning once.
            max_num_seqs: texts computed at a time.
            batch_invariant: the same scores whatever is computed beside them; needs a GPU that can.
            quantization: how the weights are quantised.
            options: any other of vLLM's settings, as `KEY=VALUE`.

        Raises:
            ModelError: the tokenizer cannot be loaded, or the model has several labels and none is named.
            UsageError: an option or a label that is not there, or no GPU that can do what is asked.
            InputError: the text format cannot be read.
            EngineError: vLLM cannot be imported, lacks what is needed, or cannot start.
        """
        self.labels = Labels.of(files, label, activation)
        self.outputs = self.labels.outputs
        self.texts = Texts(Chat.load(files.folder(), name=files.name), text_format)
        vllm = import_vllm()
        self._params = vllm.PoolingParams(use_activation=False, task="classify")
        self._vllm = vllm
        self._engine, self._guard = start(
            vllm,
            files,
            options,
            dtype=dtype,
            batch_invariant=batch_invariant,
            runner="pooling",
            max_model_len=context_length,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            enable_prefix_caching=enable_prefix_caching,
            max_num_seqs=max_num_seqs,
            quantization=quantization,
        )
        config = self._engine.vllm_config
        self.context_length = int(config.model_config.max_model_len)
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.versions = {"vllm": vllm.__version__, **versions("torch", "transformers")}
        self.notes = untested(vllm.__version__)
        self._most = max(HANDED, int(config.scheduler_config.max_num_seqs))
        self._numbers = count()

    def logits(self, rows: list[Row]) -> Iterator[tuple[list[Row], Tensor]]:
        """The rows with their logits, as the engine finishes them; see `Classifier.logits`."""
        # Those of one prompt come together, so that the engine finds their beginning in its cache.
        waiting = iter(sorted(rows, key=lambda row: row.prompt))
        flying: dict[str, Row] = {}
        more = True
        try:
            while more or flying:
                while more and len(flying) < self._most:
                    row = next(waiting, None)
                    if row is None:
                        more = False
                    else:
                        flying[number := str(next(self._numbers))] = row
                        self._do(self._add, number, row)
                done = [output for output in self._do(self._engine.step) if output.finished] if flying else []
                if done:
                    found = [flying.pop(output.request_id) for output in done]
                    yield found, torch.stack([output.outputs.data.float().reshape(-1).cpu() for output in done])
        finally:
            with suppress(Exception):  # of an engine that is dead: nothing runs in it any more
                self._engine.abort_request(list(flying))

    def close(self) -> None:
        """Stop the engine and its processes."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._guard.release()
        self._engine = None

    def _add(self, number: str, row: Row) -> None:
        prompt = self._vllm.TokensPrompt(prompt_token_ids=row.ids)
        self._engine.add_request(number, prompt, self._params)

    def _do(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            raise broken(self.versions["vllm"], error) from error
