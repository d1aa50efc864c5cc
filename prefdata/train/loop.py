"""The loop that every trainer shares: batches in the order of the seed, one optimiser step each, resumable anywhere."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from prefdata.errors import EngineError
from prefdata.ids import seed as seed_of
from prefdata.progress import Progress, quiet
from prefdata.specs.train import TrainSpec
from prefdata.storage.atomic import refused
from prefdata.train import checkpoint as checkpoints
from prefdata.train.batches import Tree, micro_batches, step_index, steps_per_epoch
from prefdata.train.metrics import Log, Means, RunMeans, fetch
from prefdata.train.models import Loaded
from prefdata.train.objectives import Objective, Sums

DRIFT_PER_TOKEN = -1.0
"""Log-probability (nats) a token that the chosen answers may lose against the reference before a warning."""

log = logging.getLogger("prefdata.train")


class Loop:
    """Trains one model on one set of trees.

    Args:
        loaded: the model.
        objective: the loss and its metrics.
        spec: the settings.
        train: the data.
        folder: where the metrics go.
        checkpoint: the file that training continues from, if it is there.
        evaluate: computes the metrics on held-out data, if there is any.
    """

    def __init__(
        self,
        loaded: Loaded,
        objective: Objective,
        spec: TrainSpec,
        train: Sequence[Tree],
        folder: Path,
        checkpoint: Path,
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self.loaded, self.objective, self.spec, self.folder = loaded, objective, spec, folder
        self.train, self.checkpoint, self.evaluate = train, checkpoint, evaluate
        steps = spec.epochs * steps_per_epoch(len(train), spec.batch_size)
        self.total = min(steps, spec.max_steps or steps)
        self.optimizer = make_optimizer(loaded.model, spec)
        self.means = Means()
        self.run_means = RunMeans(self.total)
        self.last: dict[str, float] = {}
        self.tokens = 0.0

    def run(self, progress: Progress = quiet) -> dict[str, float]:
        """Train to the end, from the folder's checkpoint where there is one.

        Returns:
            The last metrics of each kind; those of the whole run are in `run_means`.

        Raises:
            EngineError: the loss or the gradient is not finite; the last checkpoint is kept.
            StorageError: the disk refused a checkpoint or the metrics.
        """
        state = checkpoints.read(self.checkpoint, self.loaded.model, self.optimizer) or {}
        done, self.means, self.last = state.get("step", 0), Means(state.get("means")), state.get("last", {})
        self.run_means = RunMeans(self.total, state.get("run_means"))
        with refused(self.folder), closing(Log(self.folder, state.get("position", 0), done + 1)) as record:
            while done < self.total:
                metrics = self._step(done)
                self.means.add(metrics)
                self.run_means.add(done, metrics)
                done += 1
                self._record(record, done)
                progress(done, self.total, **self._figures())
                if self.spec.save_every and done % self.spec.save_every == 0 and done < self.total:
                    self._keep(done, record)
        return self.last

    def _keep(self, done: int, record: Log) -> None:
        state = {
            "step": done,
            "position": record.sync(),
            "means": self.means.sums,
            "run_means": self.run_means.sums,
            "last": self.last,
        }
        checkpoints.write(self.checkpoint, self.loaded.model, self.optimizer, state)

    def _step(self, step: int) -> dict[str, tuple[float, float]]:
        """One optimiser step (from 0): forward, backward, clip, update; returns its metrics as (sum, count)."""
        started = time.perf_counter()
        model, spec = self.loaded.model, self.spec
        # Random numbers are a function of the step: there is no generator's state to save.
        torch.manual_seed(seed_of(spec.seed, "dropout", step))
        model.train(self.objective.dropout)
        index = step_index(len(self.train), spec.batch_size, spec.seed, step).tolist()
        trees = [self.train[i] for i in index]
        size = self.objective.size(trees)
        pieces: list[Sums] = []
        for batch in micro_batches(self.train, index, self.loaded.micro_tokens):
            with self.loaded.precision():
                loss, sums = self.objective.evaluate(model, batch.to(self.loaded.device))
            (loss / size).backward()  # type: ignore[no-untyped-call]
            pieces.append(sums)
        norm = nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm or math.inf)
        metrics = fetch(pieces, grad_norm=norm)
        self._check_finite(step, metrics)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(spec, step, self.total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = float(sum(tree.tokens for tree in trees))
        self.tokens += tokens
        return {**metrics, "tokens/s": (tokens, time.perf_counter() - started)}

    def _figures(self) -> dict[str, float]:
        shown = {"loss": "loss", "accuracy": "rewards/accuracies"}
        return {name: self.last[metric] for name, metric in shown.items() if metric in self.last} | {
            "tokens": self.tokens
        }

    def _check_finite(self, step: int, metrics: dict[str, tuple[float, float]]) -> None:
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name][0])]
        if broken:
            kept = "The last checkpoint is kept. " if self.checkpoint.exists() else ""
            raise EngineError(
                f"{self.spec.step}: {broken[0]} is {metrics[broken[0]][0]} at step {step + 1} of {self.total}. {kept}"
                "Start anew (--replace) with a lower lr or a longer warmup."
            )

    def _record(self, record: Log, done: int) -> None:
        spec, final = self.spec, done == self.total
        if done % spec.log_every == 0 or final:
            epoch = done / steps_per_epoch(len(self.train), spec.batch_size)
            values = {**self.means.take(), "lr": learning_rate(spec, done - 1, self.total), "epoch": epoch}
            self.last = {**self.last, **values}
            record.write(done, values)
            self._watch_drift(done, values)
        if self.evaluate and (final or (spec.eval_every and done % spec.eval_every == 0)):
            values = {f"eval/{name}": value for name, value in self.evaluate().items()}
            self.last = {**self.last, **values}
            record.write(done, values)

    def _watch_drift(self, done: int, values: dict[str, float]) -> None:
        drift = values.get("logps/chosen_drift", 0.0)
        if drift < DRIFT_PER_TOKEN and not self.last.get("warned"):
            self.last["warned"] = 1.0
            log.warning(
                "step %d: the chosen answers have lost %.2f nats a token against the reference. DPO may push both "
                "answers down; where the model's own text suffers, lower lr or raise beta.",
                done,
                -drift,
            )


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW (beta1 .9, epsilon 1e-8); weight decay on matrices only, not on norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=spec.lr, betas=(0.9, spec.beta2), fused=True)


def learning_rate(spec: TrainSpec, step: int, total: int) -> float:
    """The learning rate of a step (from 0) of `total`.

    It rises on a line over the first `warmup * total` steps (rounded up), the first of which already moves, and is at
    its peak in the step after them.
    """
    warm = math.ceil(spec.warmup * total)
    if step < warm:
        return spec.lr * (step + 1) / (warm + 1)
    left = (total - step) / (total - warm)
    if spec.lr_scheduler == "linear":
        return spec.lr * left
    return spec.lr * (1 - math.cos(math.pi * left)) / 2 if spec.lr_scheduler == "cosine" else spec.lr


@torch.no_grad()
def evaluate(loaded: Loaded, objective: Objective, trees: Sequence[Tree]) -> dict[str, float]:
    """The objective's metrics over all of `trees`, with dropout off."""
    loaded.model.eval()
    means = Means()
    for batch in micro_batches(trees, range(len(trees)), loaded.micro_tokens):
        with loaded.precision():
            _, sums = objective.evaluate(loaded.model, batch.to(loaded.device))
        means.add(fetch([sums]))
    return means.take()
