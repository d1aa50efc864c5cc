"""`train ppo`: a run's prompts in, a better policy out; its rollouts stay in the run as candidates with scores.

    step:  rollout (sample, score, store) -> measure (policy, reference, critic) -> advantages -> update

A killed training continues from its last checkpoint, and ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.chat.clock import began_on, dated
from prefdata.models.files import identify
from prefdata.progress import Progress, Watch
from prefdata.storage.artifact import in_the_same_precision
from prefdata.storage.report import Report, by_reason
from prefdata.storage.run import Artifact, Lineage, Outcome, Run, State
from prefdata.train.ppo.rewards import rewards_identity, scorer_specs
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.specs import SftSpec
from prefdata.train.train import LossTraining, TrainingData
from prefdata.train.training import Training

if TYPE_CHECKING:
    from prefdata.storage.run import Partition
    from prefdata.train.models import LoadedModel
    from prefdata.train.ppo.loop import PpoLoop
    from prefdata.train.ppo.rewards import Rewarder


def train_ppo(
    run: Run | Path | str, spec: PpoSpec, out: Path | str, *, replace: bool = False, progress: Watch = False
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
    return PpoTraining(_opened(run), spec, out, replace).run(replace, progress)


def dry_run(run: Run | Path | str, spec: PpoSpec, out: Path | str) -> list[dict[str, Any]]:
    """Return the memory that each role would take, in bytes, and all of it last; nothing is written.

    Raises:
        As `train_ppo`, before it trains.
    """
    from prefdata.train.ppo.memory import memory_by_role

    training = PpoTraining(_opened(run), spec, out, replace=True)
    roles = memory_by_role(training.files, training.spec, training.scorers)
    rows = [{**dataclasses.asdict(role), "total": role.total} for role in roles]
    sums = {
        name: sum(row[name] for row in rows) for name in ("parameters", "weights", "gradients", "optimiser", "total")
    }
    return [*rows, {"role": "all", **sums, "note": ""}]


def _opened(run: Run | Path | str) -> Run:
    return run if isinstance(run, Run) else Run(run)


class PpoTraining(Training):
    """A training by reinforcement learning.

    Args:
        data: the run with the prompts.
        spec: the settings.
        out: the folder of the new model.
        replace: whether what was made before is replaced.
    """

    spec: PpoSpec

    def __init__(self, data: Run, spec: PpoSpec, out: Path | str, replace: bool) -> None:
        super().__init__(spec, out)
        began = None if replace else began_on([self.folder])
        self.data, self.spec = data, dated(spec, [self.files], began)
        self.scorers = scorer_specs(self.spec, began)
        self.demonstrations = None if spec.ptx is None else demonstrations(self.spec, spec.ptx, out)
        parents = {str(one): one.content for one in data.all("prompts")}
        parents |= {} if self.demonstrations is None else self.demonstrations.source.parents
        resolved = {**self.resolved(), "reward": rewards_identity(self.scorers)}
        if spec.critic is not None:
            resolved["critic"] = identify(spec.critic, "reward-model").revision
        self.lineage = Lineage.of(self.spec, parents, resolved=resolved, **self.versions())
        self.candidates = data.partition("candidates", spec.name)
        members = [] if spec.combine is None else list(self.scorers)
        names = {"": spec.name, **{member: f"{spec.name}-{member}" for member in members}}
        self.scores = {member: data.partition("scores", name) for member, name in names.items()}

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All that the training fills."""
        return (self.folder, self.candidates, *self.scores.values())

    def check(self, replace: bool) -> State:
        """Return the folder's state, if that and the run's partitions may be filled; touches nothing."""
        for artifact in self.artifacts[1:]:
            artifact.check(self.lineage, replace=replace)
        return super().check(replace)

    def train(self, replace: bool, progress: Progress) -> Report:
        """Train to the end, finish the run's partitions, and put the model into the folder."""
        from prefdata.train import models
        from prefdata.train.encode import Encoded
        from prefdata.train.ppo.rewards import Rewarder, reward_rule

        began = time.monotonic()
        progress.phase("loading the models")
        chat = models.load_chat(self.files, self.spec)
        self.spec = in_the_same_precision(self.spec, () if replace else (self.folder,))
        policy = models.load(self.files, self.spec, chat.tokenizer)
        with closing(Rewarder(self.scorers, reward_rule(self.spec, list(self.scorers)))) as rewarder:
            loop = self._loop(policy, rewarder, progress)
            lineage = self.lineage.computing(policy.computed)
            for artifact in self.artifacts:
                artifact.begin(lineage, replace=replace)
            for artifact in self.artifacts[1:]:
                artifact.reopen()
            progress.phase("training")
            last = loop.run(progress)
        report = self._finish()

        def fill(new: Path) -> Report:
            saved = policy if loop.roles.average is None else dataclasses.replace(policy, model=loop.roles.average)
            self.save(saved, chat, Encoded(conversations=int(chat.template is not None)), new)
            figures: dict[str, Any] = {name: last[name] for name in ("score", "kl", "ended") if name in last}
            figures |= {f"prompts {why}": count for why, count in loop.sampler.dropped.items()}
            figures |= {f"seconds {name}": round(spent, 1) for name, spent in loop.seconds.items()}
            return report.timed(time.monotonic() - began, steps=loop.total, **policy.computed, **figures)

        return self.folder.rebuild(lineage, fill)

    def _loop(self, policy: LoadedModel, rewarder: Rewarder, progress: Progress) -> PpoLoop:
        from prefdata.storage.queries import read_prompts
        from prefdata.train.ppo.loop import PpoLoop
        from prefdata.train.ppo.roles import Roles
        from prefdata.train.ppo.rollout import PolicyGenerator, Sampler

        spec = self.spec
        prompts = read_prompts(self.data, spec.split).to_dicts()
        generator = PolicyGenerator(self.files, policy, spec.template_choice)
        sampler = Sampler(generator, rewarder, spec, prompts, self.lineage.fingerprint)
        examples = [] if self.demonstrations is None else TrainingData(self.demonstrations, progress).train.examples
        roles = Roles(policy, spec)
        return PpoLoop(roles, sampler, spec, self.folder.path, self.candidates, self.scores, examples)

    def _finish(self) -> Report:
        """Finish the run's partitions; returns the account of all responses."""
        from prefdata.storage.compaction import compact

        compact(self.candidates, ("candidate_id",))
        self.candidates.finish(self._report(self.candidates, "status", ok="ok"))
        for scores in self.scores.values():
            compact(scores, ("candidate_id",), by_prompt=True)
            scores.finish(self._report(scores, "reason"))
        return self._report(self.scores[""], "reason")

    def _report(self, partition: Partition, column: str, ok: str | None = None) -> Report:
        """Return the counts of all responses: those without a score, or that were not sampled, by reason."""
        import polars as pl

        reasons = pl.concat([pl.read_parquet(part, columns=[column]) for part in partition.checked_parts()])[column]
        dropped = by_reason(reasons.filter(reasons != ok) if ok else reasons)
        out = len(reasons) - dropped.total()
        return Report(step=self.spec.step, unit="responses", rows_in=len(reasons), rows_out=out, dropped=dict(dropped))


def demonstrations(spec: PpoSpec, data: str, out: Path | str) -> LossTraining:
    """Return the data that PPO-ptx keeps imitating, as `train sft` would read them."""
    fields = ("model", "chat_template", "chat_template_arg", "chat_template_date")
    return LossTraining(data, SftSpec(**{name: getattr(spec, name) for name in fields}), out, None, replace=True)
