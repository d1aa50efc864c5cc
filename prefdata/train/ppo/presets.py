"""Settings by method, and those of publications and libraries. Imports no torch.

A preset has what its source states; the rest are our defaults. docs/ppo.md has the sources line by line.
"""

from __future__ import annotations

from typing import Any, Literal

Method = Literal["ppo", "rloo", "grpo", "reinforce", "online-dpo"]

METHODS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "reinforce": {"update_epochs": 1},
    "rloo": {"responses": 4, "update_epochs": 1},
    "grpo": {"responses": 8, "update_epochs": 1, "kl_in": "loss", "kl_estimator": "k3", "kl_coef": 0.04},
    "online-dpo": {"responses": 2, "update_epochs": 1, "kl_coef": 0.1},
}
"""The defaults of a method where they are not PPO's; GRPO's are those of arXiv:2402.03300, section 4.2."""

Preset = Literal["instructgpt", "deepspeed-chat", "llama2", "trl"]

PRESETS: dict[str, dict[str, Any]] = {
    # Ouyang et al. 2022 (arXiv:2203.02155), sections 3.5 and C.4.
    "instructgpt": {
        "batch_size": 512,
        "minibatches": 8,
        "update_epochs": 1,
        "kl_coef": 0.02,
        "gamma": 1.0,
        "clip": 0.2,
        "temperature": 1.0,
        "critic_lr": 9e-6,
        "lr_scheduler": "constant",
        "ptx_coef": 27.8,
        "ptx_batch": 512,
        "ema": 0.992,
    },
    # DeepSpeedExamples, applications/DeepSpeed-Chat: ppo_trainer.py, step3 main.py and run_1.3b.sh.
    "deepspeed-chat": {
        "update_epochs": 1,
        "kl_coef": 0.1,
        "reward_clip": 5.0,
        "gamma": 1.0,
        "lam": 0.95,
        "clip": 0.2,
        "value_clip": 0.2,
        "value_coef": 1.0,
        "whiten_advantages": False,
        "lr": 9.65e-6,
        "critic_lr": 5e-6,
        "lr_scheduler": "cosine",
        "ptx_coef": 27.8,
        "max_tokens": 256,
    },
    # Touvron et al. 2023 (arXiv:2307.09288), section 3.2.3.
    "llama2": {
        "batch_size": 512,
        "minibatches": 8,
        "update_epochs": 1,
        "kl_coef": 0.01,
        "clip": 0.2,
        "whiten_scores": True,
        "lr": 1e-6,
        "lr_scheduler": "constant",
        "beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    },
    # TRL 1.10, PPOConfig (trl.experimental.ppo).
    "trl": {
        "update_epochs": 4,
        "minibatches": 1,
        "kl_coef": 0.05,
        "kl_estimator": "k1",
        "clip": 0.2,
        "value_clip": 0.2,
        "value_coef": 0.1,
        "gamma": 1.0,
        "lam": 0.95,
        "whiten_rewards": False,
        "temperature": 0.7,
        "max_tokens": 53,
        "lr": 3e-6,
    },
}
"""The settings of `--preset`."""
