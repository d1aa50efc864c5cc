"""vLLM engines that stay for the next test: a start takes half a minute, so each model gets one for the whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prefdata.engines.vllm import launch
from prefdata.engines.vllm.launch import VllmEngine
from prefdata.models.files import ModelFiles
from prefdata.specs import EngineSpec

OWN = ("lora", "engine_option", "batch_invariant", "quantization", "max_model_len")
"""Settings with which a test gets an engine of its own, that is stopped when the test closes it."""

SMALL = ("enforce_eager=true", "kv_cache_memory_bytes=67108864")
"""No compiling, and memory for tiny models alone: a worker then takes 1 GB instead of 2."""

AT_A_TIME = 64
"""Requests that a kept engine computes at a time, whatever a test asks for: fewer than most tests send."""


class KeptEngines:
    """Stands in for `vllm_start.start`: the real one, whose engines are used again for the same model."""

    def __init__(self) -> None:
        self._running: dict[tuple[Any, ...], VllmEngine] = {}
        self._close: list[Callable[[], None]] = []

    def start(self, vllm: Any, model: ModelFiles, spec: EngineSpec, **settings: Any) -> VllmEngine:
        """The engine for `model`, which is started at the first call, without compiling (that takes longer)."""
        if any(getattr(spec, name) for name in OWN):
            return launch.start(vllm, model, spec, **settings)
        config = json.dumps(model.config, sort_keys=True)
        key = (model.revision, model.text_revision, config, settings.get("runner"))
        if key not in self._running:
            eager = spec.model_copy(update={"engine_option": SMALL, "max_num_seqs": AT_A_TIME})
            running = self._running[key] = launch.start(vllm, model, eager, **settings)
            self._close.append(running.close)
            running.close = lambda: None
        return self._running[key]

    def close(self) -> None:
        """Stop them all."""
        for close in self._close:
            close()
