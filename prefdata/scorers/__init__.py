"""Scorers: reward models and functions behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefdata.specs import RankSpec

if TYPE_CHECKING:
    from prefdata.scorers.protocol import Scorer


def open_scorer(spec: RankSpec) -> Scorer:
    """The scorer that a spec names, loaded.

    Raises:
        ModelError: the reward model cannot be used.
        InputError: the function cannot be found or loaded.
    """
    if spec.function is not None:
        from prefdata.scorers.function import FunctionScorer

        return FunctionScorer(spec.function)
    from prefdata.model_files import identify
    from prefdata.scorers.reward_model import RewardModel

    files = identify(str(spec.reward_model), "reward-model")
    return RewardModel(files, device=spec.device, dtype=spec.dtype, batch_tokens=spec.batch_tokens)
