"""The loop: rollout, experience, update, a step after the other, resumable after each that a checkpoint follows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import EngineError
from prefdata.progress import Progress, no_progress
from prefdata.storage.atomic import storage_errors
from prefdata.train import checkpoint as checkpoints
from prefdata.train.batches import Example, step_indices, steps_per_epoch
from prefdata.train.metrics import MetricsWriter
from prefdata.train.optimizer import learning_rate
from prefdata.train.ppo.advantages import adapted_kl_coef
from prefdata.train.ppo.alarms import Alarms
from prefdata.train.ppo.experience import make_experience, measure, summary
from prefdata.train.ppo.roles import Roles
from prefdata.train.ppo.rollout import Rollout, Sampler, store
from prefdata.train.ppo.shown import write_table
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.ppo.update import Updater, means
from prefdata.train.training import CHECKPOINT_FILE

if TYPE_CHECKING:
    from prefdata.storage.run import Partition

log = logging.getLogger("prefdata.train")


class PpoLoop:
    """The steps of one training.

    Args:
        roles: the networks.
        sampler: makes the rollouts.
        spec: the settings.
        folder: where metrics and checkpoints go.
        candidates: the run's partition for the responses.
        scores: the partitions for their scores, by the names that a rollout has.
        demonstrations: what the policy keeps imitating, if anything.
    """

    def __init__(
        self,
        roles: Roles,
        sampler: Sampler,
        spec: PpoSpec,
        folder: Path,
        candidates: Partition,
        scores: Mapping[str, Partition],
        demonstrations: Sequence[Example] = (),
    ) -> None:
        self.roles, self.sampler, self.spec, self.folder = roles, sampler, spec, folder
        self.candidates, self.scores, self.kl_coef, self.alarms = candidates, scores, spec.kl_coef, Alarms()
        self.optimizer = roles.make_optimizer()
        self.update = Updater(roles, self.optimizer, spec, demonstrations)
        self.total = spec.total_steps(steps_per_epoch(sampler.prompts, spec.batch_size))
        self.seconds = dict.fromkeys(("rollout", "experience", "update"), 0.0)

    def run(self, progress: Progress = no_progress) -> dict[str, float]:
        """Train to the end, from the folder's checkpoint where there is one; returns the last step's metrics.

        Raises:
            EngineError: a number is not finite, or no response of a step has a score; the last checkpoint is kept.
            StorageError: the disk refused a checkpoint, the metrics or the rollouts.
        """
        checkpoint = self.folder / CHECKPOINT_FILE
        state = checkpoints.read(checkpoint, self.roles.modules, self.optimizer) or {}
        done: int = state.get("step", 0)
        last: dict[str, float] = state.get("last", {})
        self.kl_coef, self.alarms = state.get("kl_coef", self.kl_coef), Alarms(state.get("alarms"))
        with (
            storage_errors(self.folder),
            closing(MetricsWriter(self.folder, state.get("position", 0), done + 1)) as writer,
        ):
            while done < self.total:
                last = self.step(done)
                done += 1
                writer.write(done, last)
                self.alarms.watch(done, last)
                progress(done, self.total, score=last["score"], kl=last["kl"])
                if self.spec.save_every and done % self.spec.save_every == 0 and done < self.total:
                    checkpoints.write(checkpoint, self.roles.modules, self.optimizer, self._state(done, last, writer))
        return last

    def _state(self, done: int, last: dict[str, float], writer: MetricsWriter) -> dict[str, Any]:
        known = {"step": done, "last": last, "kl_coef": self.kl_coef, "alarms": self.alarms.state}
        return {**known, "position": writer.sync()}

    def step(self, step: int) -> dict[str, float]:
        """One step (from 0): rollout, experience, update; returns its metrics."""
        spec, began = self.spec, time.perf_counter()
        rollout = self.rollout(step)
        sampled = time.perf_counter()
        experience = make_experience(spec, rollout, measure(self.roles, rollout), self.kl_coef)
        measured = time.perf_counter()
        rate = learning_rate(spec, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        found = summary(experience) | means(self.update(experience, step, self.kl_coef))
        found |= {"kl_coef": self.kl_coef, "lr": rate}
        self.roles.follow()
        self._check_finite(step, found)
        if spec.show_every and (step + 1) % spec.show_every == 0:
            write_table(self.folder, step + 1, rollout, self.sampler.prompt_text)
        if spec.kl_target is not None:
            episodes = int(rollout.present.sum())
            self.kl_coef = adapted_kl_coef(self.kl_coef, found["kl"], spec.kl_target, episodes, spec.kl_horizon)
        marks = (began, sampled, measured, time.perf_counter())
        for name, start, end in zip(self.seconds, marks, marks[1:], strict=False):
            self.seconds[name] += end - start
        return found

    def rollout(self, step: int) -> Rollout:
        """Return the responses of a step (from 0) with their scores; all of them are in the run from now on.

        Raises:
            EngineError: none has a score.
        """
        index = step_indices(self.sampler.prompts, self.spec.batch_size, self.spec.seed, step).tolist()
        rollout = self.sampler(step, index)
        store(self.candidates, rollout.rows)
        for name, rows in rollout.stored.items():
            store(self.scores[name], rows)
        reasons = ", ".join(f"{reason} {count}" for reason, count in rollout.unscored.items())
        if not rollout.examples:
            raise EngineError(f"step {step + 1}: no response has a score ({reasons}). Correct the scorer.")
        if reasons:
            log.warning("step %d: responses without a score are left out of the update (%s).", step + 1, reasons)
        return rollout

    def _check_finite(self, step: int, found: dict[str, float]) -> None:
        broken = [key for key, value in found.items() if not math.isfinite(value) and not key.startswith("score/")]
        if broken:
            raise EngineError(
                f"{self.spec.step}: {broken[0]} is {found[broken[0]]} at step {step + 1} of {self.total}. Start again "
                "(--replace) with a lower --lr or a higher --kl-coef."
            )
