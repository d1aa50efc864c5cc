"""Settings of adapters: a small number of new weights is trained, and the model's own stay as they are."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from prefdata.specs import Group, identity_field
from prefdata.specs.base import changes_nothing
from prefdata.train.loop_specs import LoopSpec


class AdapterSpec(LoopSpec):
    """What a trainer is asked that can train an adapter in the place of the whole model."""

    lora_r: int | None = identity_field(
        None,
        "Train a LoRA adapter of this rank on the layers, and a reward model's head, instead of all weights. The "
        "result is the adapter in PEFT's format; the model stays the reference.",
        ge=1,
        group=Group.ADAPTER,
    )
    lora_alpha: int | None = identity_field(
        None, "The adapter counts alpha / r times; 2 r unless given.", ge=1, group=Group.ADAPTER
    )
    lora_dropout: float = identity_field(
        0.0, "Share of the adapter's inputs that are dropped in training.", ge=0, lt=1, group=Group.ADAPTER
    )
    lora_targets: tuple[str, ...] = identity_field(
        (), "A linear layer by its name, as q_proj; every one but the head unless given.", group=Group.ADAPTER
    )
    dora: bool = identity_field(
        False, "DoRA: train the norms of the columns of the weights apart from their directions.", group=Group.ADAPTER
    )
    merge: bool = identity_field(
        False, "Save the model with the adapter merged into it, and not the adapter.", group=Group.ADAPTER
    )

    @property
    def alpha(self) -> int:
        """The adapter counts `alpha / lora_r` times."""
        assert self.lora_r is not None
        return 2 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    @model_validator(mode="after")
    def _of_an_adapter(self) -> Self:
        fields = AdapterSpec.model_fields
        if self.lora_r is None:
            for name in ("lora_alpha", "lora_dropout", "lora_targets", "dora", "merge"):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(changes_nothing(name, ["--lora-r"]))
        elif self.from_scratch:
            raise ValueError("--lora-r trains an adapter of a trained model: leave out --from-scratch")
        return self
