"""What `train ppo` is asked. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from prefdata.specs import Group, RankSpec, identity_field, runtime_field
from prefdata.train.loop_specs import LoopSpec

Method = Literal["ppo", "rloo", "grpo", "reinforce", "online-dpo"]

METHODS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "reinforce": {"update_epochs": 1},
    "rloo": {"responses": 4, "update_epochs": 1},
    "grpo": {"responses": 8, "update_epochs": 1, "kl_in": "loss", "kl_estimator": "k3", "kl_coef": 0.04},
    "online-dpo": {"responses": 2, "update_epochs": 1, "kl_coef": 0.1},
}
"""The defaults of a method where they are not PPO's; GRPO's are those of arXiv:2402.03300, section 4.2."""


class PpoSpec(LoopSpec):
    """Reinforcement learning: sample responses to a run's prompts, score them, and raise what scores well."""

    step: ClassVar[str] = "train ppo"

    method: Method = identity_field(
        "ppo",
        "ppo: advantages by a value head (GAE). rloo, grpo, reinforce: rewards against those of other responses. "
        "online-dpo: the DPO loss of each prompt's best and worst response.",
        group=Group.METHOD,
    )
    reward: tuple[str, ...] = identity_field(
        ...,
        "A setting of the scorer that rewards, as rank has it: reward_model=DIR, function=FILE.py:NAME, …; give it "
        "once for each setting.",
        group=Group.SCORER,
    )
    name: str = runtime_field(
        "ppo", "Name of the sampler and of the scorer that the rollouts are stored under.", group=Group.OUTPUT
    )
    split: Literal["all", "train", "test"] = identity_field("train", "Which prompts.", group=Group.PROMPTS)
    responses: int = identity_field(1, "Responses to each prompt of a step.", ge=1, group=Group.SAMPLING)
    max_tokens: int = identity_field(64, "Most tokens of a response, end token included.", ge=1, group=Group.SAMPLING)
    update_epochs: int = identity_field(4, "Passes over the responses of a step.", ge=1, group=Group.METHOD)
    minibatches: int = identity_field(
        1, "Optimiser steps in each of these passes; a prompt's responses stay together.", ge=1, group=Group.METHOD
    )
    clip: float = identity_field(0.2, "How far a token's ratio may go from 1.", gt=0, group=Group.METHOD)
    value_clip: float = identity_field(
        0.2, "ppo: how far a value may go from that at sampling.", gt=0, group=Group.METHOD
    )
    value_coef: float = identity_field(0.1, "ppo: weight of the critic's loss.", ge=0, group=Group.METHOD)
    gamma: float = identity_field(1.0, "ppo: discount of later rewards.", ge=0, le=1, group=Group.METHOD)
    lam: float = identity_field(0.95, "ppo: lambda of GAE.", ge=0, le=1, group=Group.METHOD)
    whiten_rewards: bool = identity_field(
        False, "ppo: scale the rewards by token to variance 1, with their mean kept.", group=Group.METHOD
    )
    whiten_advantages: bool = identity_field(
        True, "ppo: scale the advantages of a step to mean 0 and variance 1.", group=Group.METHOD
    )
    kl_coef: float = identity_field(
        0.05, "Reward lost for a nat of KL from the model that training starts from.", ge=0, group=Group.LOSS
    )
    kl_estimator: Literal["k1", "k2", "k3"] = identity_field("k1", "Estimator of that KL.", group=Group.LOSS)
    kl_in: Literal["reward", "loss"] = identity_field(
        "reward", "Where the KL is subtracted: from each token's reward, or added to the loss.", group=Group.LOSS
    )
    kl_target: float | None = identity_field(
        None, "Adapt --kl-coef towards this KL of a response, in nats.", gt=0, group=Group.LOSS
    )
    kl_horizon: int = identity_field(
        10_000, "With --kl-target: responses over which an error of 20% counts fully.", ge=1, group=Group.LOSS
    )
    reward_clip: float | None = identity_field(
        None, "Scores are clipped to this range around 0.", gt=0, group=Group.LOSS
    )
    missing_end_penalty: float = identity_field(
        0.0, "Subtracted from the score of a truncated response.", ge=0, group=Group.LOSS
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {**METHODS.get(str(data.get("method", "ppo")), {}), **data}

    @model_validator(mode="after")
    def _goes_together(self) -> PpoSpec:
        if self.from_scratch:
            raise ValueError("ppo needs a trained model as its reference: from_scratch is for sft and rm")
        if self.method in ("rloo", "grpo", "online-dpo") and self.responses < 2:
            raise ValueError(f"--method {self.method} compares responses: --responses should be 2 or more")
        if self.method == "online-dpo" and self.kl_in == "loss":
            raise ValueError("--method online-dpo has the KL in its loss already: leave out --kl-in")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("k1 in the loss has no gradient in expectation: give --kl-estimator k2 or k3")
        return self

    @property
    def scorer(self) -> RankSpec:
        """The scorer's own spec.

        Raises:
            UsageError: it names no scorer, or a setting does not fit.
        """
        pairs = [setting.partition("=") for setting in self.reward]
        return RankSpec.parse({name.replace("-", "_"): value for name, _, value in pairs}, where="--reward")
