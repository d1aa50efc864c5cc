"""What every training command has in common: one folder, made by one lineage, that the same command continues."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefdata.chat.template import template_identity
from prefdata.errors import InputError, ModelError, UsageError
from prefdata.ids import FORMAT
from prefdata.models.files import Kind, ModelFiles, identify, label_names
from prefdata.progress import Progress, Watch, watched
from prefdata.storage.exchange import refuse_place
from prefdata.storage.report import Report
from prefdata.storage.run import Artifact, Lineage, Outcome, State
from prefdata.train.adapter_specs import AdapterSpec
from prefdata.train.launch import place
from prefdata.train.loop_specs import LoopSpec
from prefdata.train.specs import RmSpec

if TYPE_CHECKING:
    from prefdata.chat.encoder import Chat
    from prefdata.train.encode import Encoded
    from prefdata.train.models import LoadedModel

CHECKPOINT_FILE = "_checkpoint"
"""In the model's folder while it is trained. Safetensors without the suffix: engines load every *.safetensors."""

BEST_FILE = "_best"
"""The best weights so far, as the checkpoint has them."""

METRICS = ("metrics.jsonl", "tensorboard", "responses")
"""What a loop logs to, in the model's folder: a file and folders."""


class Training:
    """One training: the model that it starts from, the folder of the new one, and what decides the result.

    Subclasses set `spec` and `lineage`, and implement `train`.

    Args:
        spec: the settings.
        out: the folder of the new model.
        weights: whether the model that training starts from needs weights.
    """

    spec: LoopSpec
    lineage: Lineage
    alone: ClassVar[bool] = True
    """Whether it runs in one process only."""

    def __init__(self, spec: LoopSpec, out: Path | str, *, weights: bool = True) -> None:
        self.folder = Artifact(Path(out), (CHECKPOINT_FILE, BEST_FILE, *METRICS))
        self.files = start_model(spec, weights=weights)
        if self.files.path is not None and self.files.path == Path(out).resolve():
            raise UsageError(f"{out} is the model that training starts from. Name another folder with --out.")

    def resolved(self) -> dict[str, Any]:
        """Return what decides the result beside settings: ids of model, tokenizer and template."""
        revisions = {"model": self.files.revision, "tokenizer": self.files.text_revision}
        return {"format": FORMAT, **revisions, **template_identity(self.spec)}

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that decide the result."""
        adapter = isinstance(self.spec, AdapterSpec) and self.spec.lora_r is not None
        return {name: version(name) for name in ("torch", "transformers", *(("peft",) if adapter else ()))}

    def run(self, replace: bool, progress: Watch) -> Outcome:
        """Train, continue, or keep what is finished.

        Raises:
            SpecConflict: the folder was trained with other settings or on other data.
            InputError: it lacks files of a finished model, or holds files that prefdata did not write.
        """
        if self.alone and place().world > 1:
            raise UsageError(f"{self.spec.step} runs in one process, and this is one of {place().world}.")
        refuse_place(self.folder.path)  # check it before training, not after
        state = self.check(replace)
        success = None if replace else self.folder.success()
        if success is not None:
            if not self.folder.intact:
                raise InputError(f"{self.folder.path} lacks files of the model. Train it again with --replace.")
            return Outcome(success.report, self.folder.path, "kept")
        from prefdata.train.distributed import joined

        watch = progress if place().rank == 0 else False
        with joined(self.spec.device), watched(watch, self.spec.step) as shown:
            report = self.train(replace, shown)
        did: Literal["made", "replaced", "continued"] = "made"
        if state != "absent":
            did = "replaced" if replace else "continued"
        return Outcome(report, self.folder.path, did)

    def check(self, replace: bool) -> State:
        """Return the folder's state; touches nothing.

        Raises:
            SpecConflict, InputError: as `Artifact.check`.
        """
        named = {} if self.spec.dtype == "auto" else {"dtype": self.spec.dtype}
        return self.folder.check(self.lineage.computing(named), replace=replace)

    def train(self, replace: bool, progress: Progress) -> Report:
        """Train to the end and put the model into the folder."""
        raise NotImplementedError

    def save(self, loaded: LoadedModel, chat: Chat, trained: Encoded, new: Path) -> None:
        """Write the model to the folder `new`, with the metrics so far."""
        from prefdata.train import models

        merged = isinstance(self.spec, AdapterSpec) and self.spec.merge
        whole = models.merged(loaded, self.files, self.spec) if merged else loaded
        models.save(whole, self.files, chat, trained, new)
        for log in (self.folder.path / name for name in METRICS if (self.folder.path / name).exists()):
            (shutil.copytree if log.is_dir() else shutil.copyfile)(log, new / log.name)


def start_model(spec: LoopSpec, *, weights: bool = True) -> ModelFiles:
    """Return the model that training starts from.

    Raises:
        ModelError: there is none, or it is of the wrong kind.
    """
    kind: Kind = "reward-start" if isinstance(spec, RmSpec) else "causal-lm"
    files = identify(spec.model, kind, weights=weights and not spec.from_scratch)
    further = not spec.from_scratch and files.architecture.endswith("ForSequenceClassification")
    if further and isinstance(spec, RmSpec):
        _check_labels(files, spec)
    return files


def _check_labels(files: ModelFiles, spec: RmSpec) -> None:
    """Require that a reward model that is trained further has the labels that are trained, in their order.

    Raises:
        ModelError: it does not.
    """
    own, asked = label_names(files.config), spec.attributes
    if len(own) != spec.heads:
        raise ModelError(
            f"{files.name} has {len(own)} label{'s' * (len(own) != 1)}, and this training has {spec.heads}. Give a "
            "causal language model, which gets new ones, or a reward model with as many."
        )
    if asked is not None and asked != own and sorted(asked) == sorted(own):
        raise ModelError(f"{files.name} has the labels {', '.join(own)}. Give --attributes in the same order.")
