"""What the trainers are asked to do: one spec a trainer, on one common base.

Nothing here imports torch: the command line reads these classes for its flags and help.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from prefdata.specs import Group, identity_field, runtime_field
from prefdata.specs.base import changes_nothing
from prefdata.train.adapter_specs import AdapterSpec
from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.registry import Command, Loss
from prefdata.train.objectives.settings import setting

OF_FILES = ("layout", "ignore", "one_means", "verdict")
"""Settings of data in files, which a run's tables do not have."""


class TrainSpec(AdapterSpec):
    """What every trainer on given data is asked."""

    max_length: int | None = identity_field(
        None,
        "Maximum tokens of a prompt with one response; the model's context unless given.",
        ge=2,
        group=Group.LENGTH,
    )
    on_long: Literal["error", "drop", "truncate"] = identity_field(
        "error",
        "What happens to longer examples: refuse the data and name them, leave them out, or cut the ends of "
        "their responses (end token included). Each is counted.",
        group=Group.LENGTH,
    )
    layout: str | None = identity_field(
        None,
        "DATA in files: how rows are read, by a layout's name or a YAML file (found from the columns unless given).",
        group=Group.INPUT,
    )
    ignore: tuple[str, ...] = identity_field((), "DATA in files: a column that is left out.", group=Group.INPUT)
    one_means: Literal["first", "second"] | None = identity_field(
        None,
        "DATA in files: which response 1 stands for in verdicts of 0 and 1; it is never guessed.",
        group=Group.INPUT,
    )
    verdict: str | None = identity_field(
        None, "DATA in files: which verdict counts, where rows hold several.", group=Group.INPUT
    )
    limit: int | None = identity_field(None, "DATA in files: read this many rows only.", ge=1, group=Group.INPUT)
    on_bad_rows: Literal["error", "drop", "quarantine"] = identity_field(
        "error",
        "What happens to rows that cannot be used, or whose response the chat template refuses or changes: refuse the "
        "data and name them, leave them out, or put them into OUT/quarantine.jsonl with the reason. Each is counted.",
        group=Group.INPUT,
    )
    nproc: int = runtime_field(
        1,
        "Processes on this machine that share each step, one for each GPU; the result is that of one process up to "
        "rounding. torchrun and Slurm start them too.",
        ge=1,
        group=Group.HARDWARE,
    )
    eval_every: int = runtime_field(
        0, "Steps between evaluations on the test split; 0 = only at the end.", ge=0, group=Group.CHECKPOINTS
    )
    keep_best: int = identity_field(
        0,
        "Evaluate after every so many steps, and save the weights with the smallest loss on the test split; 0 = save "
        "the last ones.",
        ge=0,
        group=Group.CHECKPOINTS,
    )
    patience: int = identity_field(
        0,
        "Stop after so many evaluations of --keep-best without a smaller loss; 0 = never.",
        ge=0,
        group=Group.CHECKPOINTS,
    )
    log_every: int = runtime_field(
        1, "Steps that one line of metrics.jsonl is the mean of.", ge=1, group=Group.CHECKPOINTS
    )
    log_entropy: bool = runtime_field(
        False,
        "Log the mean entropy of the policy's distributions over trained tokens, in nats.",
        group=Group.CHECKPOINTS,
    )

    @model_validator(mode="after")
    def _patience_of_the_best(self) -> Self:
        if self.patience and not self.keep_best:
            raise ValueError(changes_nothing("patience", ["--keep-best"]))
        return self


class LossSpec(TrainSpec):
    """Settings of every trainer with a choice of losses. A setting that the loss does not have is None."""

    command: ClassVar[Command]
    loss: str

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_loss(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        loss = data.get("loss", cls.model_fields["loss"].default)
        if not isinstance(loss, str):
            return data
        return {**data, **LOSSES.resolve(cls.command, loss, data)}

    @model_validator(mode="after")
    def _names_what_is_read(self) -> Self:
        """Check that the named part of a run is of the kind that the loss reads."""
        pairs = self.objective.data == "pairs"
        wrong = "input" if pairs else "pairing"
        if self.command in ("rm", "dpo") and getattr(self, wrong) is not None:
            other = "pairs: name them with --pairing" if pairs else f"{self.objective.data}: name them with --input"
            raise ValueError(f"--loss {self.loss} reads {other}")
        return self

    @classmethod
    def non_default_identity(cls, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return the non-default settings; those of a loss are compared with that loss's own defaults."""
        loss = identity.get("loss", cls.model_fields["loss"].default)
        own = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in LOSSES.resolve(cls.command, loss, {}).items()
        }
        rest = super().non_default_identity({name: value for name, value in identity.items() if name not in own})
        return {**rest, **{name: identity[name] for name in own if name in identity and identity[name] != own[name]}}

    @property
    def objective(self) -> Loss:
        """The loss's entry in the registry."""
        return LOSSES.find(self.command, self.loss)

    @property
    def rating_columns(self) -> tuple[str, ...]:
        """The columns of files that responses are rated in, where they are named."""
        return ()

    @property
    def loss_settings(self) -> dict[str, Any]:
        """The settings that the loss has."""
        return {name: getattr(self, name) for name in self.objective.settings}


class SftSpec(LossSpec):
    """Supervised fine-tuning: imitate responses."""

    step: ClassVar[str] = "train sft"
    command: ClassVar[Command] = "sft"

    loss: str = identity_field("nll", "The loss; all are listed below.", group=Group.LOSS)
    lr: float = identity_field(2e-5, "Peak learning rate of AdamW.", gt=0, group=Group.OPTIMISER)
    selector: str | None = identity_field(
        None, "Which selection of a run to imitate, the best of each prompt (the only one).", group=Group.INPUT
    )
    input: str | None = identity_field(
        None,
        "Which demonstrations of a run to imitate, all of them (without a name only where it has no selection).",
        group=Group.INPUT,
    )

    @model_validator(mode="after")
    def _one_source(self) -> SftSpec:
        if self.selector is not None and self.input is not None:
            raise ValueError("--selector and --input name two things to imitate: leave one out")
        return self


class PreferenceSpec(LossSpec):
    """What trainers on preferences are asked."""

    on_contradiction: Literal["drop", "keep"] = identity_field(
        "drop",
        "DATA in files: a pair and its reverse, which contradict each other: leave both out, or train on both.",
        group=Group.INPUT,
    )
    score: str | None = identity_field(
        None,
        "DATA in files: the column with the responses' scores, for losses of groups and ratings; -COLUMN where the "
        "smallest is best (scores, score, ratings, rating or ranks unless given).",
        group=Group.INPUT,
    )

    @model_validator(mode="after")
    def _scores_are_read(self) -> Self:
        if self.score is not None and self.objective.data not in ("groups", "rated"):
            rating = [loss.name for loss in LOSSES.of(self.command) if loss.data in ("groups", "rated")]
            raise ValueError(changes_nothing("score", [f"--loss {name}" for name in rating]))
        return self

    @property
    def rating_columns(self) -> tuple[str, ...]:
        """The columns of files that responses are rated in, where they are named."""
        return () if self.score is None else (self.score,)


class RmSpec(PreferenceSpec):
    """A reward model: score better responses higher."""

    step: ClassVar[str] = "train rm"
    command: ClassVar[Command] = "rm"

    loss: str = identity_field("bradley-terry", "The loss; all are listed below.", group=Group.LOSS)
    pairing: str | None = identity_field(None, "Which pairs of a run; the only ones unless given.", group=Group.INPUT)
    input: str | None = identity_field(
        None, "Which groups or labels of a run, for losses of those; the only ones unless given.", group=Group.INPUT
    )
    use_margin: bool | None = setting(
        "rm",
        "use_margin",
        "Ask the score gap to exceed each pair's margin (the data's margin column; of groups the gap of their scores).",
    )
    center_rewards: float | None = setting(
        "rm", "center_rewards", "Weight of (chosen + rejected score)^2, which keeps scores near 0.", ge=0
    )
    soft_labels: bool | None = setting(
        "rm", "soft_labels", "Learn each pair's probability that its label is right (the data's probability column)."
    )
    safety_weight: float | None = setting(
        "rm",
        "safety_weight",
        "Weight of Llama 2's safety loss: the cross-entropy of the data's columns chosen_safe and rejected_safe.",
        ge=0,
    )
    attributes: tuple[str, ...] | None = setting(
        "rm", "attributes", "A column with ratings of responses; each has a head."
    )
    members: int | None = setting("rm", "members", "Heads of the ensemble.", ge=2)

    @model_validator(mode="after")
    def _one_gap(self) -> RmSpec:
        if self.soft_labels and self.use_margin:
            raise ValueError("--soft-labels and --use-margin both say how wide the gap should be: leave one out")
        if self.log_entropy:
            raise ValueError("--log-entropy is for policies: a reward model has no distribution over tokens")
        return self

    @model_validator(mode="after")
    def _one_name_of_ratings(self) -> RmSpec:
        if self.attributes and self.score is not None:
            raise ValueError("--attributes and --score both name columns of ratings: leave one out")
        return self

    @property
    def rating_columns(self) -> tuple[str, ...]:
        """The columns of files that responses are rated in, where they are named."""
        return self.attributes or super().rating_columns

    @property
    def heads(self) -> int:
        """Outputs of the reward model."""
        return self.members or len(self.attributes or ()) or 1


class ReferenceSpec(LossSpec):
    """Settings of the trainers whose losses have a reference."""

    ref_model: str | None = identity_field(
        None,
        "The reference: a folder or a hub name; the model that training starts from unless given.",
        group=Group.LOSS,
    )


class DpoSpec(PreferenceSpec, ReferenceSpec):
    """Direct preference optimisation and its relatives: prefer better responses, without a reward model."""

    step: ClassVar[str] = "train dpo"
    command: ClassVar[Command] = "dpo"

    loss: str = identity_field("sigmoid", "The loss; all are listed below.", group=Group.LOSS)
    lr: float = identity_field(1e-6, "Peak learning rate of AdamW.", gt=0, group=Group.OPTIMISER)
    pairing: str | None = identity_field(None, "Which pairs of a run; the only ones unless given.", group=Group.INPUT)
    input: str | None = identity_field(
        None, "Which groups of a run, for losses of those; the only ones unless given.", group=Group.INPUT
    )
    beta: float | None = setting(
        "dpo", "beta", "How strongly the policy is held to the model it starts from; higher = closer.", gt=0
    )
    label_smoothing: float | None = setting(
        "dpo", "label_smoothing", "Share of labels taken to be flipped (cDPO).", ge=0, lt=0.5
    )
    soft_labels: bool | None = setting(
        "dpo",
        "soft_labels",
        "cDPO with each pair's own share: 1 - the probability that its label is right (the data's probability column).",
    )
    f_divergence: Literal["reverse-kl", "forward-kl", "js", "alpha"] | None = setting(
        "dpo", "f_divergence", "The divergence from the reference that defines the implicit rewards."
    )
    f_alpha: float | None = setting(
        "dpo", "f_alpha", "alpha of the alpha divergence: 1 is the reverse KL, 0 the forward KL."
    )
    ld_alpha: float | None = setting(
        "dpo", "ld_alpha", "LD-DPO: weight of the tokens beyond the length of the shorter response.", ge=0, le=1
    )
    wpo: bool | None = setting("dpo", "wpo", "WPO: weigh each pair by how likely the policy is to write it.")
    nll_weight: float | None = setting(
        "dpo", "nll_weight", "Weight of the chosen response's NLL a token beside the loss (RPO).", ge=0
    )
    gamma: float | None = setting("dpo", "gamma", "The margin, inside the sigmoid.", ge=0)
    lam: float | None = setting("dpo", "lam", "Weight of the odds ratio.", ge=0)
    tau: float | None = setting("dpo", "tau", "Temperature of the mixture.", gt=0)
    penalty: float | None = setting("dpo", "penalty", "Weight of what the chosen response loses.", ge=0)
    delta: float | None = setting("dpo", "delta", "The margin of log-probabilities, in nats.", ge=0)
    reg_weight: float | None = setting("dpo", "reg_weight", "Weight of the regularizer.", ge=0)
    regularizer: Literal["ce", "kl"] | None = setting(
        "dpo", "regularizer", "ce: the NLL of the best response; kl: the KL from the first model along its tokens."
    )
    rank_weight: float | None = setting("dpo", "rank_weight", "Weight of the rank loss; 0 is best-of-n SFT.", ge=0)
    sft_weight: float | None = setting("dpo", "sft_weight", "Weight of the best response's NLL.", ge=0)
    length_power: float | None = setting("dpo", "length_power", "Log-probabilities are over tokens^length-power.", ge=0)

    sync_ref_every: int = identity_field(
        0, "Steps between updates of the reference towards the policy (TR-DPO); 0 = none.", ge=0, group=Group.LOSS
    )
    sync_ref_alpha: float = identity_field(
        0.6, "The policy's share in such an update; 1 = replaces the reference.", gt=0, le=1, group=Group.LOSS
    )

    @model_validator(mode="after")
    def _goes_together(self) -> DpoSpec:
        if self.soft_labels and self.label_smoothing:
            raise ValueError("--soft-labels take the place of --label-smoothing: leave one out")
        if self.ref_model is not None and self.sync_ref_every:
            raise ValueError("--sync-ref-every starts from the model that is trained: leave out --ref-model")
        if self.lora_r is not None and self.sync_ref_every:
            raise ValueError("--sync-ref-every is for whole models: leave out --lora-r")
        given = [name for name in ("ref_model", "sync_ref_every") if getattr(self, name)]
        if given and not self.objective.reference and self.regularizer != "kl":
            raise ValueError(f"--loss {self.loss} has no reference: leave out --{given[0].replace('_', '-')}")
        if self.loss == "exo" and not self.label_smoothing:
            raise ValueError("--loss exo needs --label-smoothing above 0: its target would be infinite")
        if self.f_divergence not in (None, "alpha") and self.f_alpha != self.objective.settings["f_alpha"]:
            raise ValueError(changes_nothing("f_alpha", ["--f-divergence alpha"]))
        if self.from_scratch:
            raise ValueError("dpo needs a trained model as its reference: from_scratch is for sft and rm")
        return self


class KtoSpec(ReferenceSpec):
    """Learn from responses that are good or bad, each on its own."""

    step: ClassVar[str] = "train kto"
    command: ClassVar[Command] = "kto"

    loss: str = identity_field("kto", "The loss; all are listed below.", group=Group.LOSS)
    lr: float = identity_field(1e-6, "Peak learning rate of AdamW.", gt=0, group=Group.OPTIMISER)
    input: str | None = identity_field(None, "Which labels of a run; the only ones unless given.", group=Group.INPUT)
    pairing: str | None = identity_field(
        None, "Which pairs of a run to take apart into good and bad responses, instead of labels.", group=Group.INPUT
    )
    beta: float | None = setting(
        "kto", "beta", "How strongly the policy is held to the model it starts from; higher = closer.", gt=0
    )
    desirable_weight: float | None = setting("kto", "desirable_weight", "Weight of desirable responses.", ge=0)
    undesirable_weight: float | None = setting("kto", "undesirable_weight", "Weight of undesirable responses.", ge=0)

    @model_validator(mode="after")
    def _goes_together(self) -> KtoSpec:
        if self.input is not None and self.pairing is not None:
            raise ValueError("--input and --pairing name two things to learn from: leave one out")
        if self.from_scratch:
            raise ValueError("kto needs a trained model as its reference: from_scratch is for sft and rm")
        return self
