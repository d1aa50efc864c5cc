"""`train ppo`: a run's prompts in, a better policy out; its rollouts stay in the run as candidates with scores.

    step:  rollout (sample, score, store) -> measure (policy, reference, critic) -> advantages -> update

A killed training continues from its last checkpoint, and ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import EngineError, InputError, UsageError
from prefdata.ids import FORMAT
from prefdata.progress import Progress, Watch, watched
from prefdata.scorers.open import is_pairwise, open_scorer, scorer_identity
from prefdata.specs.rank import CandidatesSpec
from prefdata.storage.exchange import refuse_place
from prefdata.storage.report import Report
from prefdata.storage.run import Artifact, Lineage, Outcome, Run
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.train import CHECKPOINT_FILE, METRICS, start_model

if TYPE_CHECKING:
    from prefdata.train.models import LoadedModel
    from prefdata.train.ppo.rollout import Sampler


def train_ppo(
    run: Path | str, spec: PpoSpec, out: Path | str, *, replace: bool = False, progress: Watch = False
) -> Outcome:
    """Train a causal LM on its own responses to a run's prompts; the model that it starts from is the reference.

    Args:
        run: the run directory with the prompts; the rollouts are added to it as the candidates and scores of
            `spec.name`, with the step as their `round`.
        spec: the settings.
        out: the folder of the new model.
        replace: train again if `out` holds a model that prefdata made.
        progress: True for a bar, or lines in a pipe; or a function f(done, total, **figures) of every step.

    Raises:
        InputError: the run, the model, the scorer or a setting is bad, or `out` holds something else.
        EngineError: training ran into numbers that are not finite, or no response of a step has a score.
    """
    return _PpoTraining(Run(run), spec, Path(out)).run(replace, progress)


class _PpoTraining:
    def __init__(self, run: Run, spec: PpoSpec, out: Path) -> None:
        self.data, self.spec, self.scorer = run, spec, spec.scorer
        if not isinstance(self.scorer, CandidatesSpec) or is_pairwise(self.scorer):
            raise UsageError("--reward: name a scorer that scores single responses (reward_model, function, …).")
        self.folder = Artifact(out, (CHECKPOINT_FILE, *METRICS))
        self.files = start_model(spec)
        parents = {str(one): one.content for one in run.all("prompts")}
        identity = {"format": FORMAT, "model": self.files.revision, "tokenizer": self.files.text_revision}
        resolved = {**identity, "reward": {**self.scorer.identity(), **scorer_identity(self.scorer)}}
        versions = {name: version(name) for name in ("torch", "transformers")}
        self.lineage = Lineage.of(spec, parents, resolved=resolved, **versions)
        self.stored = {table: run.partition(table, spec.name) for table in ("candidates", "scores")}

    def run(self, replace: bool, progress: Watch) -> Outcome:
        refuse_place(self.folder.path)
        state = self.folder.check(self.lineage, replace=replace)
        success = None if replace else self.folder.success()
        if success is not None:
            if not self.folder.intact:
                raise InputError(f"{self.folder.path} lacks files of the model. Train it again with --replace.")
            return Outcome(success.report, self.folder.path, "kept")
        for partition in self.stored.values():
            partition.check(self.lineage, replace=replace)
        with watched(progress, self.spec.step) as told:
            report = self._train(replace, told)
        return Outcome(
            report, self.folder.path, "made" if state == "absent" else "replaced" if replace else "continued"
        )

    def _train(self, replace: bool, progress: Progress) -> Report:
        from prefdata.storage.compaction import compact
        from prefdata.storage.queries import read_prompts
        from prefdata.train import models
        from prefdata.train.encode import Encoded
        from prefdata.train.ppo.rollout import Sampler

        began = time.monotonic()
        progress.phase("loading the models")
        prompts = read_prompts(self.data, self.spec.split).to_dicts()
        chat = models.load_chat(self.files, self.spec)
        loaded = models.load(self.files, self.spec, chat.tokenizer)
        scorer = open_scorer(self.scorer)
        sampler = Sampler(_generator(self, loaded), scorer, self.spec, prompts, self.lineage.fingerprint)
        for artifact in (self.folder, *self.stored.values()):
            artifact.begin(self.lineage, replace=replace)
        for partition in self.stored.values():
            partition.reopen()
        progress.phase("training")
        last = PpoLoop(self, loaded, sampler, len(prompts)).run(progress)
        scorer.close()

        def fill(new: Path) -> Report:
            models.save(loaded, self.files, chat, Encoded(conversations=int(chat.template is not None)), new)
            for log in (self.folder.path / name for name in METRICS if (self.folder.path / name).exists()):
                (shutil.copytree if log.is_dir() else shutil.copyfile)(log, new / log.name)
            figures = {name: last[name] for name in ("score", "kl", "ended") if name in last}
            return self._report(len(prompts)).timed(time.monotonic() - began, **figures)

        for table, partition in self.stored.items():
            compact(partition, ("candidate_id",), by_prompt=table == "scores")
            partition.finish(self._report(len(prompts)))
        return self.folder.rebuild(self.lineage, fill)

    def _report(self, prompts: int) -> Report:
        return Report(step=self.spec.step, unit="prompts", rows_in=prompts, rows_out=prompts)


def _generator(training: _PpoTraining, loaded: LoadedModel) -> Any:
    from prefdata.engines.hf.generator import TransformersGenerator

    with sampling_attention(loaded.model):
        return TransformersGenerator(
            training.files,
            choice=training.spec.template_choice,
            device=str(loaded.device),
            dtype="float32",
            net=loaded.model,
        )


@contextmanager
def sampling_attention(model: Any) -> Iterator[None]:
    """Give the model the attention that generation needs: the packed one of training keeps no cache."""
    from prefdata.models.loading import attention_settings

    packed = model.config._attn_implementation
    model.set_attn_implementation(attention_settings(model.config).get("attn_implementation", "sdpa"))
    try:
        yield
    finally:
        model.set_attn_implementation(packed)


class PpoLoop:
    """The steps of one training, resumable after each that a checkpoint follows."""

    def __init__(self, training: _PpoTraining, loaded: LoadedModel, sampler: Sampler, prompts: int) -> None:
        import torch

        from prefdata.train.batches import steps_per_epoch
        from prefdata.train.optimizer import make_optimizer
        from prefdata.train.ppo.update import Updater

        self.training, self.spec, self.loaded, self.sampler = training, training.spec, loaded, sampler
        self.prompts, self.kl_coef = prompts, training.spec.kl_coef
        self.reference = deepcopy(loaded.model).eval().requires_grad_(False)
        if self.spec.method == "ppo":
            hidden = loaded.model.get_output_embeddings().weight.shape[1]
            loaded.model.value_head = torch.nn.Linear(hidden, 1).to(loaded.device)
            torch.nn.init.zeros_(loaded.model.value_head.weight)
            torch.nn.init.zeros_(loaded.model.value_head.bias)
        self.optimizer = make_optimizer(loaded.model, self.spec)
        self.update = Updater(loaded, self.optimizer, self.spec)
        steps = self.spec.epochs * steps_per_epoch(prompts, self.spec.batch_size)
        self.total = min(steps, self.spec.max_steps or steps)
        self.checkpoint = training.folder.path / CHECKPOINT_FILE

    def run(self, progress: Progress) -> dict[str, float]:
        """Train to the end, from the folder's checkpoint where there is one; returns the last step's metrics."""
        from prefdata.train import checkpoint as checkpoints
        from prefdata.train.metrics import MetricsWriter

        folder, modules = self.training.folder.path, {"model": self.loaded.model}
        state = checkpoints.read(self.checkpoint, modules, self.optimizer) or {}
        done: int = state.get("step", 0)
        last: dict[str, float] = state.get("last", {})
        self.kl_coef = state.get("kl_coef", self.kl_coef)
        with closing(MetricsWriter(folder, state.get("position", 0), done + 1)) as writer:
            while done < self.total:
                last = self.step(done)
                done += 1
                writer.write(done, last)
                progress(done, self.total, score=last["score"], kl=last["kl"])
                if self.spec.save_every and done % self.spec.save_every == 0 and done < self.total:
                    state = {"step": done, "last": last, "kl_coef": self.kl_coef, "position": writer.sync()}
                    checkpoints.write(self.checkpoint, modules, self.optimizer, state)
        return last

    def step(self, step: int) -> dict[str, float]:
        """One step (from 0): rollout, advantages, update; returns its metrics."""
        import math

        from prefdata.train.batches import step_indices
        from prefdata.train.optimizer import learning_rate
        from prefdata.train.ppo.advantages import adapted_kl_coef
        from prefdata.train.ppo.rollout import store
        from prefdata.train.ppo.update import make_experience, means, measure, summary

        index = step_indices(self.prompts, self.spec.batch_size, self.spec.seed, step).tolist()
        rollout, candidates, scores = self._sample(step, index)
        store(self.training.stored["candidates"], candidates)
        name = self.training.stored["candidates"].name
        store(self.training.stored["scores"], [{**row, "sampler": name} for row in scores])
        if not rollout.examples:
            raise EngineError(f"step {step + 1}: no response has a score ({rollout.reason}). Correct the scorer.")
        mask, logps, values = measure(self.loaded, self.loaded.model, rollout.examples)
        _, ref_logps, _ = measure(self.loaded, self.reference, rollout.examples)
        experience = make_experience(self.spec, rollout, mask, logps, ref_logps, values, self.kl_coef)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, step, self.total)
        found = summary(self.spec, rollout, experience) | means(self.update(experience, step, self.kl_coef))
        found |= {"kl_coef": self.kl_coef, "lr": learning_rate(self.spec, step, self.total)}
        if broken := [key for key, value in found.items() if not math.isfinite(value)]:
            raise EngineError(f"step {step + 1}: {broken[0]} is {found[broken[0]]}. Lower --lr or raise --kl-coef.")
        if self.spec.kl_target is not None:
            episodes = len(rollout.examples) * self.spec.responses
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, found["kl"], self.spec.kl_target, episodes, self.spec.kl_horizon
            )
        return found

    def _sample(self, step: int, index: list[int]) -> Any:
        with sampling_attention(self.loaded.model.eval()):
            return self.sampler(step, index)
