"""What the trainers are asked to do: one spec a trainer, on one common base.

Nothing here imports torch: the command line reads these classes for its flags and help.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from prefdata.specs import Group, how, what
from prefdata.specs.chat import ChatSpec

OF_FILES = ("layout", "ignore", "one_means", "verdict")
"""Settings of data in files, which a run's tables do not have."""


class TrainSpec(ChatSpec):
    """What every trainer is asked."""

    model: str = what(description="The model to start from: a folder or a hub name.", group=Group.MODEL)
    from_scratch: bool = what(
        False,
        "Start from random weights drawn by the seed; the model folder then needs no weights, only its "
        "config.json and tokenizer.",
        group=Group.MODEL,
    )
    epochs: int = what(1, "Passes over the data.", ge=1, group=Group.OPTIMISER)
    max_steps: int | None = what(
        None,
        "Stop after so many optimiser steps, where the epochs have more; the learning rate falls over these.",
        ge=1,
        group=Group.OPTIMISER,
    )
    lr: float = what(1e-5, "Peak learning rate of AdamW.", gt=0, group=Group.OPTIMISER)
    batch_size: int = what(32, "Examples of one optimiser step (a pair is one example).", ge=1, group=Group.OPTIMISER)
    warmup: float = what(
        0.1, "Share of all steps over which the learning rate rises from zero.", ge=0, lt=1, group=Group.OPTIMISER
    )
    lr_scheduler: Literal["linear", "cosine", "constant"] = what(
        "linear",
        "The learning rate after the warm-up: falling to zero on a line or a cosine, or constant.",
        group=Group.OPTIMISER,
    )
    weight_decay: float = what(
        0.0, "AdamW's decoupled weight decay, of weight matrices only.", ge=0, group=Group.OPTIMISER
    )
    beta2: float = what(
        0.999,
        "AdamW's decay of squared gradients. 0.95 forgets sooner: for small models and batches.",
        ge=0,
        lt=1,
        group=Group.OPTIMISER,
    )
    max_grad_norm: float = what(
        1.0, "Gradients of a larger norm, over all parameters, are scaled to it; 0 = off.", ge=0, group=Group.OPTIMISER
    )
    max_length: int | None = what(
        None, "Most tokens of a prompt with one answer; the model's context unless given.", ge=2, group=Group.LENGTH
    )
    on_long: Literal["error", "drop", "truncate"] = what(
        "error",
        "What happens to longer examples: refuse the data and name them, leave them out, or cut the ends of "
        "their responses (end token included). Each is counted.",
        group=Group.LENGTH,
    )
    layout: str | None = what(
        None,
        "DATA in files: how rows are read, by a layout's name or a YAML file (found from the columns unless given).",
        group=Group.INPUT,
    )
    ignore: tuple[str, ...] = what(
        (), "DATA in files: a column that is left out; may be given several times.", group=Group.INPUT
    )
    one_means: Literal["first", "second"] | None = what(
        None,
        "DATA in files: which response 1 stands for in verdicts of 0 and 1; it is never guessed.",
        group=Group.INPUT,
    )
    verdict: str | None = what(None, "DATA in files: which verdict counts, where rows hold several.", group=Group.INPUT)
    limit: int | None = what(None, "DATA in files: read this many rows only.", ge=1, group=Group.INPUT)
    on_bad_rows: Literal["error", "drop", "quarantine"] = what(
        "error",
        "What happens to rows that cannot be used, or whose response the chat template refuses or changes: refuse the "
        "data and name them, leave them out, or put them into OUT/quarantine.jsonl with the reason. Each is counted.",
        group=Group.INPUT,
    )
    seed: int = what(0, "Seed of the order of the data, of dropout and of new weights.", ge=0, group=Group.OPTIMISER)
    micro_tokens: int | None = how(
        None,
        "Most tokens, padding included, that go through the model at once; 1024 on a CPU, 16384 on a GPU unless given.",
        ge=1,
        group=Group.HARDWARE,
    )
    eval_every: int = how(
        0, "Steps between evaluations on the test split; 0 = only at the end.", ge=0, group=Group.CHECKPOINTS
    )
    save_every: int = how(200, "Steps between checkpoints; 0 = none.", ge=0, group=Group.CHECKPOINTS)
    log_every: int = how(1, "Steps that one line of metrics.jsonl is the mean of.", ge=1, group=Group.CHECKPOINTS)
    device: str | None = how(
        None, "cpu, cuda or cuda:N; the GPU where there is one unless given.", group=Group.HARDWARE
    )
    dtype: Literal["auto", "float32", "bfloat16"] = how(
        "auto",
        "Precision of the matrix products; weights and optimiser stay float32. auto = bfloat16 on a GPU that "
        "has it, float32 elsewhere.",
        group=Group.HARDWARE,
    )


class SftSpec(TrainSpec):
    """Supervised fine-tuning: imitate answers."""

    step: ClassVar[str] = "train sft"

    loss: Literal["nll"] = what(
        "nll", "Negative log-likelihood of the answer's tokens, mean over the tokens of a step.", group=Group.LOSS
    )
    lr: float = what(2e-5, "Peak learning rate of AdamW.", gt=0, group=Group.OPTIMISER)
    selector: str | None = what(
        None, "Which selection of a run to imitate, the best of each prompt (the only one).", group=Group.INPUT
    )
    input: str | None = what(
        None,
        "Which demonstrations of a run to imitate, all of them (without a name only where it has no selection).",
        group=Group.INPUT,
    )

    @model_validator(mode="after")
    def _one_source(self) -> SftSpec:
        if self.selector is not None and self.input is not None:
            raise ValueError("--selector and --input name two things to imitate: leave one out")
        return self


class PreferenceSpec(TrainSpec):
    """What trainers on pairs are asked."""

    on_contradiction: Literal["drop", "keep"] = what(
        "drop",
        "DATA in files: a pair and its reverse, which contradict each other: leave both out, or train on both.",
        group=Group.INPUT,
    )


class RmSpec(PreferenceSpec):
    """A reward model: score the chosen answer above the rejected one."""

    step: ClassVar[str] = "train rm"

    loss: Literal["bradley-terry"] = what(
        "bradley-terry", "-log sigmoid(score of chosen - score of rejected).", group=Group.LOSS
    )
    pairing: str | None = what(None, "Which pairs of a run; the only ones unless given.", group=Group.INPUT)
    use_margin: bool = what(
        False, "Ask the score gap to exceed each pair's margin (the data's margin column).", group=Group.LOSS
    )
    center_rewards: float = what(
        0.0, "Weight of (chosen + rejected score)^2, which keeps scores near 0.", ge=0, group=Group.LOSS
    )
    soft_labels: bool = what(
        False,
        "Learn each pair's probability that its label is right (the data's probability column).",
        group=Group.LOSS,
    )

    @model_validator(mode="after")
    def _one_gap(self) -> RmSpec:
        if self.soft_labels and self.use_margin:
            raise ValueError("--soft-labels and --use-margin both say how wide the gap should be: leave one out")
        return self


class DpoSpec(PreferenceSpec):
    """Direct preference optimisation: prefer the chosen answer, without a reward model."""

    step: ClassVar[str] = "train dpo"

    loss: Literal["sigmoid"] = what(
        "sigmoid", "-log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)).", group=Group.LOSS
    )
    lr: float = what(1e-6, "Peak learning rate of AdamW.", gt=0, group=Group.OPTIMISER)
    pairing: str | None = what(None, "Which pairs of a run; the only ones unless given.", group=Group.INPUT)
    beta: float = what(
        0.1, "How strongly the policy is held to the model it starts from; higher = closer.", gt=0, group=Group.LOSS
    )
    label_smoothing: float = what(0.0, "Share of labels taken to be flipped (cDPO).", ge=0, lt=0.5, group=Group.LOSS)
    soft_labels: bool = what(
        False,
        "cDPO with each pair's own share: 1 - the probability that its label is right (the data's probability column).",
        group=Group.LOSS,
    )

    @model_validator(mode="after")
    def _goes_together(self) -> DpoSpec:
        if self.soft_labels and self.label_smoothing:
            raise ValueError("--soft-labels take the place of --label-smoothing: leave one out")
        if self.from_scratch:
            raise ValueError("dpo needs a trained model as its reference: from_scratch is for sft and rm")
        return self
