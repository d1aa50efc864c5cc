"""Training: from data to a Hugging Face folder; the same command again continues an interrupted run.

    train_dpo("runs/demo", DpoSpec(model="models/policy"), "runs/demo/models/dpo")

Nothing is written before the model and all of the data have been checked. A killed run continues from its last
checkpoint and ends with the same bits as one that was never killed; a finished model is not trained again.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefdata.chat.clock import began_on, dated
from prefdata.errors import ModelError, SpecConflict, UsageError
from prefdata.formats.files import RawRow
from prefdata.formats.layout_maps import named_map
from prefdata.formats.reading import ReadOptions
from prefdata.formats.records import BadRowError
from prefdata.ids import digest
from prefdata.models.files import ModelFiles, identify
from prefdata.progress import Progress, Watch, no_progress
from prefdata.storage.artifact import in_the_same_precision
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Outcome, State
from prefdata.train import data as sources
from prefdata.train.advice import unusual_lr
from prefdata.train.launch import check_count
from prefdata.train.objectives.registry import WANTED, Data
from prefdata.train.parsing import Kind as Layout
from prefdata.train.parsing import Needs, contradicting
from prefdata.train.specs import OF_FILES, DpoSpec, KtoSpec, LossSpec, ReferenceSpec, RmSpec, SftSpec, TrainSpec
from prefdata.train.training import CHECKPOINT_FILE, Training

if TYPE_CHECKING:
    from prefdata.train.batches import Example
    from prefdata.train.models import LoadedModel
    from prefdata.train.objectives.objective import Objective
    from prefdata.train.reference import LiveReference

REFERENCE_FOLDER = "_reference"
"""The cached log-probabilities of references: in the run, or next to the model's folder if there is no run."""

RUN_MEANS = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/desirable",
    "rewards/undesirable",
    "kl",
    "logps/chosen_drift",
)
"""Metrics whose means over the run, and over its first and last tenth, are in the Report."""

KINDS: dict[Data, Layout] = {
    "demonstrations": "demonstrations",
    "pairs": "preferences",
    "groups": "groups",
    "unpaired": "unpaired",
    "rated": "rated",
}
"""The reader's kind of data for the data of each loss."""

log = logging.getLogger("prefdata.train")

EVALUATED = ("eval/loss", "eval/rewards/accuracies")
"""The metrics of the last evaluation that the Report repeats; metrics.jsonl has them all."""


def train_sft(
    data: Path | str, spec: SftSpec, out: Path | str, *, replace: bool = False, progress: Watch = False
) -> Outcome:
    """Fine-tune a causal LM on demonstrations.

    If the model's chat template has `{% generation %}` marks, every turn of the assistant is trained, else the last
    turn of each conversation.

    Args:
        data: a run directory (the best response per prompt of a selection; all demonstrations; or without either the
            references), an export, a file or a `datasets` name.
        spec: the settings.
        out: the folder of the new model.
        replace: train again if `out` has a model that prefdata made; other files are never removed.
        progress: True for a bar, or lines in a pipe; or a function f(done, total, **figures), called after each step
            (for DPO first after each window of the reference's log-probabilities).

    Raises:
        InputError: the data, the model or a setting is bad, or `out` has other content; nothing was written.
        EngineError: the loss or the gradient is not finite.
    """
    return LossTraining(data, spec, out, spec.selector, replace).run(replace, progress)


def train_rm(
    data: Path | str, spec: RmSpec, out: Path | str, *, replace: bool = False, progress: Watch = False
) -> Outcome:
    """Train a reward model on preferences, from a causal LM (with a new head) or from a reward model.

    The score is read at the last token of the rendered conversation. Arguments and errors as in `train_sft`.
    """
    return LossTraining(data, spec, out, _part(spec), replace).run(replace, progress)


def train_dpo(
    data: Path | str, spec: DpoSpec, out: Path | str, *, replace: bool = False, progress: Watch = False
) -> Outcome:
    """Train a causal LM on pairs or groups with a loss of the DPO family; the model it starts from is the reference.

    Arguments and errors as in `train_sft`.
    """
    return LossTraining(data, spec, out, _part(spec), replace).run(replace, progress)


def train_kto(
    data: Path | str, spec: KtoSpec, out: Path | str, *, replace: bool = False, progress: Watch = False
) -> Outcome:
    """Train a causal LM on responses labelled good or bad; the model it starts from is the reference.

    Arguments and errors as in `train_sft`.
    """
    return LossTraining(data, spec, out, _part(spec), replace).run(replace, progress)


def plan_training(data: Path | str, spec: LossSpec, out: Path | str) -> dict[str, Any]:
    """Say what a training would do: parameters, examples, tokens, steps, and gigabytes of memory by part.

    The model's folder or hub name needs no weights, and nothing is written. Errors as in `train_sft`.
    """
    part = spec.selector if isinstance(spec, SftSpec) else _part(cast(RmSpec, spec))
    return LossTraining(data, spec, out, part, replace=False, weights=False).plan()


def _part(spec: RmSpec | DpoSpec | KtoSpec) -> str | None:
    """Name the part of a run that the data are."""
    return spec.input if spec.pairing is None else spec.pairing


class LossTraining(Training):
    """A training on given data with a loss of the registry.

    Args:
        data: where the data are.
        spec: the settings.
        out: the folder of the new model.
        part: which part of a run the data are.
        replace: whether another model may be there.
        weights: whether the model that training starts from needs weights.
    """

    spec: LossSpec
    alone = False

    def __init__(
        self,
        data: Path | str,
        spec: LossSpec,
        out: Path | str,
        part: str | None,
        replace: bool,
        *,
        weights: bool = True,
    ) -> None:
        check_count(spec.nproc)
        super().__init__(spec, out, weights=weights)
        self.kind: Layout = KINDS[spec.objective.data]
        self.spec = spec = dated(spec, [self.files], None if replace else began_on([self.folder]))
        self.reference = None
        if isinstance(spec, ReferenceSpec) and spec.ref_model is not None:
            self.reference = identify(spec.ref_model, "causal-lm")
        demonstrations = spec.input if isinstance(spec, SftSpec) else None
        apart = isinstance(spec, KtoSpec) and spec.pairing is not None
        kind = "preferences" if apart else self.kind  # pairs of a run, whose sides are labelled
        self.source = sources.open_source(data, kind, part=part, demonstrations=demonstrations)
        resolved = self.resolved()
        if self.reference is not None:
            resolved["ref_model"] = self.reference.revision
        if spec.layout:
            resolved["layout"] = digest(named_map(spec.layout).model_dump(mode="json"))
        self.lineage = Lineage.of(spec, self.source.parents, resolved=resolved, **self.versions())

    def check(self, replace: bool) -> State:
        """Return the folder's state, if it is to be trained on these data; touches nothing."""
        state = super().check(replace)
        there = None if replace else self.folder.lineage()
        if there is not None and there.parents != self.lineage.parents:
            raise SpecConflict(
                f"{self.folder.path} was trained on other data ({', '.join(there.parents)} as it was then). "
                "Give the new model another name, or --replace the old one."
            )
        return state

    def plan(self) -> dict[str, Any]:
        """Return the figures of the training that would be done."""
        from prefdata.train.plan import planned

        data, spec = TrainingData(self, no_progress), self.spec
        follows = isinstance(spec, DpoSpec) and spec.sync_ref_every > 0
        compared = spec.loss_settings.get("regularizer") == "kl" and spec.lora_r is None
        examples = {"examples": len(data.train.examples), "held_out": len(data.test.examples)}
        return examples | planned(self.files, spec, data.train.examples, int(follows or compared))

    def train(self, replace: bool, progress: Progress) -> Report:
        """Train to the end and put the model into the folder."""
        from prefdata.train import distributed, models
        from prefdata.train.batches import content_hash
        from prefdata.train.loop import Loop, evaluate

        started = time.monotonic()
        data = TrainingData(self, progress)
        if self.spec.keep_best and not data.test.examples:
            raise UsageError(
                f"{self.source.name}: --keep-best compares weights on the test split, and no example is in it. Mark "
                "some rows as split test, or leave it out."
            )
        progress.phase("loading the model")
        self.spec = in_the_same_precision(self.spec, () if replace else (self.folder,))
        loaded = models.load(self.files, self.spec, data.chat.tokenizer)
        if warning := unusual_lr(self.spec, sum(parameter.numel() for parameter in loaded.model.parameters())):
            log.warning("%s", warning)
        frozen = self._load_reference(loaded)
        lineage = self.lineage.computing(loaded.computed)
        train, test = data.train.examples, data.test.examples
        if distributed.world() > 1:
            distributed.agree(examples=content_hash([*train, *test]), model=lineage.fingerprint, **loaded.numerics)
        if distributed.is_first():
            self.folder.begin(lineage, replace=replace)
            data.stream.reader.bad.put_aside(self.folder.path / "quarantine.jsonl")
        distributed.barrier()
        objective, test_objective, live = self._objectives(loaded, frozen, train, test, progress)
        del frozen  # the objective keeps what it needs

        def held_out() -> dict[str, float]:
            return evaluate(loaded, test_objective, test, self.spec.batch_size)

        path = self.folder.path
        checkpoint = path / CHECKPOINT_FILE
        loop = Loop(loaded, objective, self.spec, train, path, checkpoint, held_out if test else None, live)
        progress.phase("training")
        last = loop.run(progress)

        def fill(new: Path) -> Report:
            self.save(loaded, data.chat, data.train, new)
            figures: dict[str, Any] = {name: last[name] for name in EVALUATED if name in last}
            figures |= loop.run_means.figures(RUN_MEANS)
            figures |= {name: last[name] for name in ("best_step",) if name in last}
            figures |= {
                "steps": int(last.get("stopped_at", loop.total)),
                "batch_layout": loaded.layout,
                **({"processes": distributed.world()} if distributed.world() > 1 else {}),
                **loaded.computed,
            }
            return data.report(objective.noun).timed(time.monotonic() - started, **figures)

        if not distributed.is_first():
            return data.report(objective.noun)
        return self.folder.rebuild(lineage, fill)  # replaces the folder with the checkpoint

    def _objectives(
        self,
        loaded: LoadedModel,
        frozen: LoadedModel,
        train: list[Example],
        test: list[Example],
        progress: Progress,
    ) -> tuple[Objective, Objective, LiveReference | None]:
        """Make the objective for training, the one for held-out data, and the reference if it follows the policy."""
        from prefdata.train.objectives.objective import Objective
        from prefdata.train.reference import LiveReference, Reference, cached_reference, frozen_model

        spec, entry = self.spec, self.spec.objective
        ld_alpha = spec.loss_settings.get("ld_alpha", 1.0)
        live = None
        if isinstance(spec, DpoSpec) and spec.sync_ref_every:
            live = LiveReference(loaded, spec.sync_ref_every, spec.sync_ref_alpha, ld_alpha)
        model = None  # the reference's, if the loss reads its distributions and not only its log-probabilities
        if spec.loss_settings.get("regularizer") == "kl":
            model = frozen_model(frozen, loaded) if live is None else live.model
        # In the run, or next to the new model, since other settings of the loss need the same values.
        cache = (self.source.run or self.folder.path.absolute().parent) / REFERENCE_FOLDER
        revision = (self.reference or self.files).revision

        def make(examples: list[Example]) -> Objective:
            reference: Reference | None = live if entry.reference else None
            if entry.reference and live is None:
                progress.phase("log-probabilities of the reference")
                reference = cached_reference(frozen, revision, examples, cache, progress, ld_alpha)
            return Objective(entry, spec.loss_settings, reference, model, spec.seed)

        return make(train), make(test), live

    def _load_reference(self, loaded: LoadedModel) -> LoadedModel:
        """Load the frozen reference model; before the first step the policy itself may serve as it."""
        from prefdata.train import models

        files = self.reference
        if files is None or files.revision == self.files.revision:
            return loaded
        tokenizer = models.load_chat(files, self.spec).tokenizer
        if tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            raise ModelError(
                f"{files.name} has other tokens than {self.files.name}, so it cannot be its reference. Set --ref-model "
                "to a model with the same tokenizer."
            )
        return models.load(files, self.spec, tokenizer, frozen=True)


class TrainingData:
    """Tokenised training data: `train`, `test`, and the counts of its rows."""

    def __init__(self, training: LossTraining, progress: Progress) -> None:
        from prefdata.train.encode import Encoder
        from prefdata.train.models import load_chat
        from prefdata.train.objectives.fitting import fit

        spec, files, source = training.spec, training.files, training.source
        progress.phase("reading the data")
        self.step = spec.step
        self.chat = load_chat(files, spec)
        needs = Needs(
            training.kind,
            margin=bool(spec.loss_settings.get("use_margin")) and training.kind == "preferences",
            probability=bool(spec.loss_settings.get("soft_labels")),
            template=self.chat.template is not None,
            ratings=spec.rating_columns,
            safety=bool(spec.loss_settings.get("safety_weight")),
            wanted=f"{spec.step} --loss {spec.loss} wants {WANTED[spec.objective.data]}",
        )
        if source.run is not None and (given := [name for name in OF_FILES if getattr(spec, name)]):
            raise UsageError(f"--{given[0].replace('_', '-')} is for DATA in files, and {source.run} is a run.")
        self.stream = source.items(needs, ReadOptions.of(spec))
        items = list(self.stream)
        if training.kind == "preferences" and source.run is None and getattr(spec, "on_contradiction", "") == "drop":
            left_out = contradicting(items)
            items = [item for place, item in enumerate(items) if place not in left_out]
            self.stream.skipped["contradiction"] += len(left_out)
        self.skipped = self.stream.skipped + self.stream.reader.dropped
        self.count = len(items) + self.skipped.total()
        progress.phase("tokenising")
        encoder = Encoder(
            self.chat,
            longest(files, spec),
            spec.on_long,
            sampled=not isinstance(spec, RmSpec),
            on_bad_rows=spec.on_bad_rows,
            vocabulary=files.vocabulary,
        )
        self.train = encoder.encode([item for item in items if item.row.split != "test"])
        self.test = encoder.encode([item for item in items if item.row.split == "test"])
        for row, problem in (*self.train.bad, *self.test.bad):
            self.stream.reader.bad.add(RawRow(row.file, row.row, row.values), BadRowError(*problem))
        for part in (self.train, self.test):
            part.examples = fit(part.examples, spec.objective, spec.seed, longest(files, spec), part.dropped)
        if not self.train.examples:
            account = _account(self.count, self.skipped + self.train.dropped)
            raise UsageError(f"{source.name}: nothing is left to train on ({account}).")
        if spec.template_choice and not self.train.conversations:
            raise UsageError(
                f"{source.name} holds plain texts, which no chat template renders: leave out --chat-template and "
                "--chat-template-arg, or give conversations (lists of {role, content})."
            )

    def report(self, unit: str) -> Report:
        """Report what became of every row: trained, held out for evaluation, or dropped and why."""
        dropped = {"held_out": len(self.test.examples)} if self.test.examples else {}
        for reason, count in [*(+self.skipped).items(), *self.train.dropped.items(), *self.test.dropped.items()]:
            dropped[reason] = dropped.get(reason, 0) + count
        figures: dict[str, Any] = self.stream.figures() | dict(+(self.train.figures + self.test.figures))
        if self.chat.template is not None and (plain := len(self.train.examples) - self.train.conversations):
            figures["plain_texts"] = plain
            if not self.train.conversations:
                figures["note"] = "Trained on plain texts: the new model has no chat template."
        return Report(
            step=self.step,
            unit=unit,
            rows_in=self.count,
            rows_out=len(self.train.examples),
            dropped=dropped,
            figures=figures,
        )


def _account(rows: int, dropped: dict[str, int]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
    return f"{rows} rows, {reasons or 'all of them in the test split'}"


def longest(files: ModelFiles, spec: TrainSpec) -> int | None:
    """Return the maximum tokens of a row: the spec's, else the model's context.

    Raises:
        UsageError: the spec asks for more than the model's context.
    """
    context = files.context_length
    if spec.max_length is not None and context is not None and spec.max_length > context:
        raise UsageError(f"max_length {spec.max_length} is more than the {context} positions of {files.name}.")
    return spec.max_length or context
