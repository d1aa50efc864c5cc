"""What `train ppo` is asked. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from prefdata.errors import UsageError
from prefdata.specs import Group, RankSpec, identity_field, runtime_field
from prefdata.specs.base import changes_nothing
from prefdata.train.adapter_specs import AdapterSpec
from prefdata.train.ppo.presets import METHODS, PRESETS, Method, Preset

_POLICY_GRADIENT = ("ppo", "rloo", "grpo", "reinforce")
_OF_PPO = ("value_clip", "value_coef", "gamma", "lam", "whiten_rewards", "whiten_advantages", "critic", "critic_lr")
_OF_RATIOS = ("clip", "kl_estimator", "kl_in", "kl_target", "kl_horizon", "kl_stop", "entropy_coef")

USED_BY: dict[str, tuple[str, ...]] = dict.fromkeys(_OF_PPO, ("ppo",)) | dict.fromkeys(_OF_RATIOS, _POLICY_GRADIENT)
"""The methods that have a setting, where not all of them have it."""

NEEDS = {"kl_horizon": "kl_target", "critic_lr": "critic", "ptx_coef": "ptx", "ptx_batch": "ptx"}
"""Settings that have an effect only beside another one."""


class PpoSpec(AdapterSpec):
    """Reinforcement learning: sample responses to a run's prompts, score them, and raise what scores well."""

    step: ClassVar[str] = "train ppo"

    method: Method = identity_field(
        "ppo",
        "ppo: advantages by a critic (GAE). rloo, grpo, reinforce: rewards against those of other responses. "
        "online-dpo: the DPO loss of each prompt's best and worst response.",
        group=Group.METHOD,
    )
    preset: Preset | None = identity_field(
        None, "The settings of a publication or library, where none is given here: docs/ppo.md.", group=Group.METHOD
    )
    reward: tuple[str, ...] = identity_field(
        ...,
        "A setting of the scorer that rewards, as rank has it: reward_model=DIR, function=FILE.py:NAME, …; give it "
        "once for each setting. With several scorers each setting begins with a name: safe:reward_model=DIR.",
        group=Group.SCORER,
    )
    combine: str | None = identity_field(
        None,
        "With several scorers: the reward, as rank --combine has it, such as gate(safety=safe, helpful=help). Scorers "
        "that it leaves out are only logged and watched.",
        group=Group.SCORER,
    )
    name: str = runtime_field(
        "ppo", "Name of the sampler and of the scorer that the rollouts are stored under.", group=Group.OUTPUT
    )
    split: Literal["all", "train", "test"] = identity_field("train", "Which prompts.", group=Group.PROMPTS)
    on_bad_prompts: Literal["error", "drop"] = identity_field(
        "error",
        "What happens to prompts that do not fit the model's context, or that its chat template refuses: refuse to "
        "train and name one, or leave them out and count them.",
        group=Group.PROMPTS,
    )
    epochs: int = identity_field(1, "Passes over the prompts.", ge=1, group=Group.OPTIMISER)
    max_steps: int | None = identity_field(
        None,
        "Stop after so many steps (rollout and update), where the epochs have more; the learning rate falls over them.",
        ge=1,
        group=Group.OPTIMISER,
    )
    batch_size: int = identity_field(32, "Prompts of a step.", ge=1, group=Group.SAMPLING)
    responses: int = identity_field(
        1,
        "Responses to each prompt of a step; 4 with rloo, 8 with grpo, 2 with online-dpo unless given.",
        ge=1,
        group=Group.SAMPLING,
    )
    max_tokens: int = identity_field(
        64, "Maximum tokens of a response, end token included.", ge=1, group=Group.SAMPLING
    )
    temperature: float = identity_field(
        1.0, "Of sampling; log-probabilities are those of the distribution that is sampled.", gt=0, group=Group.SAMPLING
    )
    update_epochs: int = identity_field(
        4, "Passes over the responses of a step; 1 with other methods than ppo unless given.", ge=1, group=Group.METHOD
    )
    minibatches: int = identity_field(
        1, "Optimiser steps in each of these passes; a prompt's responses stay together.", ge=1, group=Group.METHOD
    )
    clip: float = identity_field(0.2, "How far a token's ratio may go from 1.", gt=0, group=Group.METHOD)
    gamma: float = identity_field(1.0, "ppo: discount of later rewards.", ge=0, le=1, group=Group.METHOD)
    lam: float = identity_field(0.95, "ppo: lambda of GAE.", ge=0, le=1, group=Group.METHOD)
    critic: str | None = identity_field(
        None,
        "ppo: a reward model that the critic starts from, a network of its own; a value head on the policy unless "
        "given.",
        group=Group.METHOD,
    )
    critic_lr: float | None = identity_field(
        None, "ppo: peak learning rate of a --critic; that of the policy unless given.", gt=0, group=Group.METHOD
    )
    value_clip: float = identity_field(
        0.2, "ppo: how far a value may go from that at sampling.", gt=0, group=Group.METHOD
    )
    value_coef: float = identity_field(0.1, "ppo: weight of the critic's loss.", ge=0, group=Group.METHOD)
    whiten_rewards: bool = identity_field(
        False, "ppo: scale the rewards by token to variance 1, with their mean kept.", group=Group.METHOD
    )
    whiten_advantages: bool = identity_field(
        True, "ppo: scale the advantages of a step to mean 0 and variance 1.", group=Group.METHOD
    )
    kl_coef: float = identity_field(
        0.05,
        "Reward lost for a nat of KL from the model that training starts from; online-dpo: beta of its loss. 0.04 with "
        "grpo, 0.1 with online-dpo unless given.",
        ge=0,
        group=Group.LOSS,
    )
    kl_estimator: Literal["k1", "k2", "k3"] = identity_field(
        "k1", "Estimator of that KL; k3 with grpo unless given.", group=Group.LOSS
    )
    kl_in: Literal["reward", "loss"] = identity_field(
        "reward",
        "Where the KL is subtracted: from each token's reward, or added to the loss (grpo, unless given).",
        group=Group.LOSS,
    )
    kl_target: float | None = identity_field(
        None, "Adapt --kl-coef towards this KL of a response, in nats.", gt=0, group=Group.LOSS
    )
    kl_horizon: int = identity_field(
        10_000, "With --kl-target: responses over which an error of 20% counts fully.", ge=1, group=Group.LOSS
    )
    kl_stop: float | None = identity_field(
        None,
        "End a step's passes where the policy is further than this from the one that sampled, in nats a token.",
        gt=0,
        group=Group.LOSS,
    )
    entropy_coef: float = identity_field(0.0, "Weight of the mean entropy a token, which is raised.", group=Group.LOSS)
    whiten_scores: bool = identity_field(
        False, "Scale the scores of a step to mean 0 and variance 1, before all below.", group=Group.LOSS
    )
    reward_clip: float | None = identity_field(
        None, "Scores are clipped to this range around 0.", gt=0, group=Group.LOSS
    )
    missing_end_penalty: float = identity_field(
        0.0, "Subtracted from the score of a truncated response.", ge=0, group=Group.LOSS
    )
    missing_end_score: float | None = identity_field(
        None, "The score of a truncated response, in the place of its own.", group=Group.LOSS
    )
    length_coef: float = identity_field(
        0.0, "Subtracted from the score for each token of a response.", group=Group.LOSS
    )
    ptx: str | None = identity_field(
        None,
        "Demonstrations that the policy keeps imitating (PPO-ptx): a run, an export, a file or a dataset.",
        group=Group.LOSS,
    )
    ptx_coef: float = identity_field(27.8, "With --ptx: weight of their NLL a token.", gt=0, group=Group.LOSS)
    ptx_batch: int = identity_field(32, "With --ptx: demonstrations of an optimiser step.", ge=1, group=Group.LOSS)
    ema: float | None = identity_field(
        None,
        "Save the moving average of the weights over steps, which keeps this share of itself in each.",
        gt=0,
        lt=1,
        group=Group.OPTIMISER,
    )
    show_every: int = runtime_field(
        0,
        "Steps between tables of some responses with their scores, in OUT/responses; 0 = none.",
        ge=0,
        group=Group.CHECKPOINTS,
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_method_and_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        preset = PRESETS.get(str(data.get("preset")), {})
        method = METHODS.get(str(data.get("method", preset.get("method", "ppo"))), {})
        return {**method, **preset, **data}

    @model_validator(mode="after")
    def _has_an_effect(self) -> PpoSpec:
        if self.preset is not None and self.method != PRESETS[self.preset].get("method", "ppo"):
            raise ValueError(f"--preset {self.preset} is for --method {PRESETS[self.preset].get('method', 'ppo')}")
        self.require_default_unless("method", **USED_BY)
        for name, needs in NEEDS.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and getattr(self, needs) is None and name not in PRESETS.get(str(self.preset), {}):
                raise ValueError(changes_nothing(name, [f"--{needs.replace('_', '-')}"]))
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> PpoSpec:
        if self.from_scratch:
            raise ValueError("ppo needs a trained model as its reference: from_scratch is for sft and rm")
        if self.lora_dropout:
            raise ValueError("ppo trains without dropout, so that ratios start at 1: leave out --lora-dropout")
        if self.lora_r is not None and self.ema is not None:
            raise ValueError("--ema is for whole models: leave out --lora-r")
        if self.method in ("rloo", "grpo", "online-dpo") and self.responses < 2:
            raise ValueError(f"--method {self.method} compares responses: --responses should be 2 or more")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("k1 in the loss has no gradient in expectation: give --kl-estimator k2 or k3")
        if self.missing_end_score is not None and self.missing_end_penalty:
            raise ValueError("--missing-end-score takes the place of --missing-end-penalty: leave one out")
        return self

    @property
    def scorers(self) -> dict[str, RankSpec]:
        """The scorers by name; `reward` where one stands alone.

        Raises:
            UsageError: one is no scorer, a setting does not fit, or some have names and some have not.
        """
        settings: dict[str, dict[str, str]] = {}
        for given in self.reward:
            setting, _, value = given.partition("=")
            name, colon, setting = setting.rpartition(":")
            settings.setdefault(name if colon else "", {})[setting.replace("-", "_")] = value
        if "" in settings and len(settings) > 1:
            raise UsageError(
                "--reward: with several scorers each setting begins with a name, as safe:reward_model=DIR."
            )
        return {
            name or "reward": RankSpec.parse(values, where=f"--reward {name}".rstrip())
            for name, values in settings.items()
        }
