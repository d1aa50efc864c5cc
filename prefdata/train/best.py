"""The best weights of a training by the loss on held-out data, and when to stop because there are no better ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prefdata.train import checkpoint, distributed


class BestWeights:
    """Keeps the weights of the evaluation with the smallest loss in a file of their own.

    A run that is continued from an earlier step comes to the same evaluations again, and keeps the same weights.

    Args:
        path: the file.
        model: whose weights.
        every: steps between evaluations.
        patience: evaluations without a smaller loss after which training stops; 0: never.
        state: what an earlier part of the run has seen, as `state` gives it.
    """

    def __init__(
        self, path: Path, model: nn.Module, every: int, patience: int, state: Mapping[str, Any] | None = None
    ) -> None:
        self._path, self._modules, self._every, self._patience = path, {"model": model}, every, patience
        self.state: dict[str, Any] = dict(state or {"step": 0, "metrics": {}, "since": 0})

    def is_due(self, done: int, total: int) -> bool:
        """Whether the weights are evaluated after so many steps."""
        return done % self._every == 0 or done == total

    def see(self, done: int, metrics: Mapping[str, float]) -> bool:
        """Keep the weights if they are the best so far; returns whether to stop.

        Raises:
            StorageError: they could not be written.
        """
        loss, best = metrics["eval/loss"], self.state["metrics"].get("eval/loss")
        if loss == loss and (best is None or loss < best):  # NaN is no loss
            if distributed.is_first():
                checkpoint.write(self._path, self._modules, None, {"step": done})
            self.state = {"step": done, "metrics": dict(metrics), "since": 0}
        else:
            self.state["since"] += 1
        return bool(self._patience) and self.state["since"] >= self._patience

    def restore(self) -> dict[str, float]:
        """Give the model its best weights; returns their metrics, none where no evaluation had a loss.

        Raises:
            InputError: the file is damaged.
        """
        distributed.barrier()  # the first process has written them
        if self.state["step"]:
            checkpoint.read(self._path, self._modules, None)
        return {**self.state["metrics"], "best_step": self.state["step"]} if self.state["step"] else {}
