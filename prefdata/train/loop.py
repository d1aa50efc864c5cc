"""The training loop of all trainers: batches in seeded order, one optimiser step each, resumable at any step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from prefdata.errors import EngineError
from prefdata.ids import seed as seed_of
from prefdata.progress import Progress, no_progress
from prefdata.storage.atomic import storage_errors
from prefdata.train import checkpoint as checkpoints
from prefdata.train import distributed
from prefdata.train.advice import too_easy
from prefdata.train.batches import Batch, Example, collated, cuts, micro_batches, shares, step_indices, steps_per_epoch
from prefdata.train.best import BestWeights
from prefdata.train.metrics import MetricMeans, MetricSums, MetricsWriter, NoMetrics, RunMeans, stack_sums
from prefdata.train.models import LoadedModel
from prefdata.train.objectives.objective import Objective
from prefdata.train.optimizer import gradient_norm, learning_rate, make_optimizer
from prefdata.train.reference import LiveReference
from prefdata.train.specs import TrainSpec
from prefdata.train.steps import StepGradient, measure
from prefdata.train.training import BEST_FILE

DRIFT_PER_TOKEN = -1.0
"""Loss of log-probability (nats per token) of the chosen responses against the reference that causes a warning."""

log = logging.getLogger("prefdata.train")


class Loop:
    """Trains one model on one set of examples.

    Args:
        loaded: the model.
        objective: the loss and its metrics.
        spec: the settings.
        train: the data.
        folder: the folder of metrics.jsonl.
        checkpoint: the file that training continues from, if it exists.
        evaluate: computes the metrics on held-out data, if there is any.
        reference: the reference, if it follows the policy.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        objective: Objective,
        spec: TrainSpec,
        train: Sequence[Example],
        folder: Path,
        checkpoint: Path,
        evaluate: Callable[[], dict[str, float]] | None = None,
        reference: LiveReference | None = None,
    ) -> None:
        self.loaded, self.objective, self.spec, self.folder = loaded, objective, spec, folder
        self.train, self.checkpoint, self.evaluate, self.reference = train, checkpoint, evaluate, reference
        self.total = spec.total_steps(steps_per_epoch(len(train), spec.batch_size))
        self.optimizer = make_optimizer(loaded.model, spec)
        self.means, self.run_means = MetricMeans(), RunMeans(self.total)
        self.last: dict[str, float] = {}
        self.tokens = 0.0
        self.checked = 0
        self.best: BestWeights | None = None

    def run(self, progress: Progress = no_progress) -> dict[str, float]:
        """Train to the end, from the folder's checkpoint if there is one.

        Returns:
            The last metrics of each kind; the means over the whole run are in `run_means`.

        Raises:
            EngineError: the loss or the gradient is not finite; the last checkpoint is kept.
            StorageError: a checkpoint or the metrics could not be written.
        """
        state = checkpoints.read(self.checkpoint, self._modules, self.optimizer) or {}
        done = self.checked = state.get("step", 0)
        distributed.agree(**{"the step of the checkpoint": done})
        self.means, self.last = MetricMeans(state.get("means")), state.get("last", {})
        self.run_means = RunMeans(self.total, state.get("run_means"))
        if self.spec.keep_best:
            place, spec = self.checkpoint.with_name(BEST_FILE), self.spec
            self.best = BestWeights(place, self.loaded.model, spec.keep_best, spec.patience, state.get("best"))
        with (
            storage_errors(self.folder),
            closing(self._writer(state.get("position", 0), done + 1)) as writer,
        ):
            while done < self.total:
                metrics = self._step(done)
                self.means.add(metrics)
                self.run_means.add(done, metrics)
                done += 1
                self._record(writer, done)
                progress(done, self.total, **self._figures())
                if self._sees_no_better(done):
                    break
                if self.spec.save_every and done % self.spec.save_every == 0 and done < self.total:
                    self._save(done, writer)
        return self.last if self.best is None else {**self.last, **self.best.restore(), "stopped_at": float(done)}

    def _writer(self, position: int, step: int) -> MetricsWriter | NoMetrics:
        return MetricsWriter(self.folder, position, step) if distributed.is_first() else NoMetrics()

    @property
    def _modules(self) -> dict[str, nn.Module]:
        reference = {} if self.reference is None else {"reference": self.reference.model}
        return {"model": self.loaded.model, **reference}

    def _save(self, done: int, writer: MetricsWriter | NoMetrics) -> None:
        sums = self.means.sums
        self._check_finite(done, {name: total for name, (total, _) in sums.items()})
        if not distributed.is_first():
            return  # the first process has the same
        state = {
            "step": done,
            "position": writer.sync(),
            "means": sums,
            "run_means": self.run_means.sums,
            "last": self.last,
            **({} if self.best is None else {"best": self.best.state}),
        }
        checkpoints.write(self.checkpoint, self._modules, self.optimizer, state)

    def _step(self, step: int) -> dict[str, Tensor]:
        """Run one optimiser step (from 0): forward, backward, clip, update; returns its metrics' sums and counts."""
        started = time.perf_counter()
        model, spec = self.loaded.model, self.spec
        self.loaded.train(self.objective.dropout)
        index = step_indices(len(self.train), spec.batch_size, spec.seed, step).tolist()
        examples = [self.train[i] for i in index]
        gradient = StepGradient(
            self.loaded,
            self.objective,
            self.objective.size(examples),
            entropies=spec.log_entropy and self._logs(step + 1),
            # Random numbers are a function of the step and the micro-batch, so no generator state is saved.
            reseed=lambda first: torch.manual_seed(seed_of(spec.seed, "dropout", step, first)),
        )

        def add(tokens: int) -> list[MetricSums]:
            self.optimizer.zero_grad()  # of what was added until memory ended
            return gradient.add(own_batches(self.loaded, self.train, index, tokens))

        metrics = distributed.sum_metrics(stack_sums(self.loaded.micro.whole(add)), self.loaded.device)
        distributed.sum_gradients(model.parameters())
        norm = gradient_norm(model.parameters())
        if spec.max_grad_norm:
            nn.utils.clip_grads_with_norm_(model.parameters(), spec.max_grad_norm, norm)
        metrics |= stack_sums([{"grad_norm": (norm.detach(), 1.0)}])
        if self.loaded.device.type == "cpu":  # reading the value needs no synchronisation
            self._check_finite(step + 1, {name: float(metrics[name][0]) for name in ("loss", "grad_norm")})
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(spec, step, self.total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.reference is not None:
            self.reference.follow(model, step + 1)
        tokens = float(sum(example.tokens for example in examples))
        self.tokens += tokens
        return {**metrics, **stack_sums([{"tokens/s": (tokens, time.perf_counter() - started)}])}

    def _is_compared(self, done: int) -> bool:
        """Whether the weights are compared with the best ones after so many steps."""
        return self.best is not None and self.best.is_due(done, self.total)

    def _sees_no_better(self, done: int) -> bool:
        """Keep the weights if they are the best so far; returns whether to stop, as none were better for long."""
        return self.best is not None and self._is_compared(done) and self.best.see(done, self._evaluated)

    @property
    def _evaluated(self) -> dict[str, float]:
        """The metrics of the last evaluation."""
        return {name: value for name, value in self.last.items() if name.startswith("eval/")}

    def _figures(self) -> dict[str, float]:
        shown = {"loss": "loss", "accuracy": "rewards/accuracies"}
        return {name: self.last[metric] for name, metric in shown.items() if metric in self.last} | {
            "tokens": self.tokens
        }

    def _logs(self, done: int) -> bool:
        return done % self.spec.log_every == 0 or done == self.total

    def _check_finite(self, done: int, sums: dict[str, float]) -> None:
        """Raise if the loss or gradient of a step since the last check is not finite: then its sum is not either."""
        broken = [name for name in ("loss", "grad_norm") if name in sums and not math.isfinite(sums[name])]
        if broken:
            kept = "The last checkpoint is kept. " if self.checkpoint.exists() else ""
            steps = f"step {done}" if self.checked == done - 1 else f"steps {self.checked + 1} to {done}"
            raise EngineError(
                f"{self.spec.step}: {broken[0]} is {sums[broken[0]]} at {steps} of {self.total}. {kept}"
                "Start again (--replace) with a lower lr or a longer warmup."
            )
        self.checked = done

    def _record(self, writer: MetricsWriter | NoMetrics, done: int) -> None:
        spec, final = self.spec, done == self.total
        if self._logs(done):
            means = self.means.pop()
            self._check_finite(done, means)
            epoch = done / steps_per_epoch(len(self.train), spec.batch_size)
            values = {**means, "lr": learning_rate(spec, done - 1, self.total), "epoch": epoch}
            self.last = {**self.last, **values}
            writer.write(done, values)
            self._watch_drift(done, values)
        if done == self.run_means.first_steps and (warning := too_easy(self.run_means.sums[" first"])):
            log.warning("step %d: %s", done, warning)
        if self.evaluate and (final or self._is_compared(done) or (spec.eval_every and done % spec.eval_every == 0)):
            values = {f"eval/{name}": value for name, value in self.evaluate().items()}
            self.last = {**self.last, **values}
            writer.write(done, values)

    def _watch_drift(self, done: int, values: dict[str, float]) -> None:
        drift = values.get("logps/chosen_drift", 0.0)
        if drift < DRIFT_PER_TOKEN and not self.last.get("warned"):
            self.last["warned"] = 1.0
            log.warning(
                "step %d: the chosen responses have lost %.2f nats per token against the reference. DPO may lower "
                "the likelihood of both responses; if samples of the model get worse, lower lr or raise beta.",
                done,
                -drift,
            )


@torch.no_grad()
def evaluate(
    loaded: LoadedModel, objective: Objective, examples: Sequence[Example], batch_size: int
) -> dict[str, float]:
    """Compute the metrics over `examples` with dropout off; a coupled loss sees `batch_size` examples at a time.

    Several processes share the examples; of a coupled loss, the batches.
    """
    loaded.model.eval()
    pieces: list[MetricSums] = []
    if objective.coupled:
        starts = range(0, len(examples), batch_size)[distributed.rank() :: distributed.world()]
        for index in (range(start, min(start + batch_size, len(examples))) for start in starts):

            def together(tokens: int, index: range = index) -> list[MetricSums]:
                return measure(loaded, objective, micro_batches(examples, index, tokens, loaded.layout))

            pieces += loaded.micro.whole(together)
    else:
        index = range(len(examples))
        pieces = loaded.micro.whole(
            lambda tokens: measure(loaded, objective, own_batches(loaded, examples, index, tokens))
        )
    means = MetricMeans()
    means.add(distributed.sum_metrics(stack_sums(pieces), loaded.device))
    return means.pop()


def own_batches(
    loaded: LoadedModel, examples: Sequence[Example], index: Sequence[int], max_tokens: int
) -> Iterator[Batch]:
    """Batch this process's share of the examples at `index`, at most `max_tokens` tokens each.

    The shares depend on the data and the given limit alone, so that one process may go on with less when its memory is
    full.
    """
    own = shares(examples, index, loaded.micro.given, loaded.layout, distributed.world())[distributed.rank()]
    parts = (part for whole in own for part in cuts(examples, whole, max_tokens, loaded.layout))
    return collated(examples, index, parts, loaded.layout)
