"""Scorers: reward models and functions behind one protocol."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import InputError
from prefdata.ids import ID_DIGITS
from prefdata.model_files import identify
from prefdata.specs import RankSpec

if TYPE_CHECKING:
    from prefdata.scorers.protocol import Comparer, Scorer


def open_scorer(spec: RankSpec) -> Scorer:
    """The scorer that a spec names, loaded.

    Raises:
        ModelError: the reward model cannot be used.
        InputError: the function cannot be found or loaded.
    """
    if spec.function is not None:
        from prefdata.scorers.function import FunctionScorer

        return FunctionScorer(spec.function)
    from prefdata.scorers.reward_model import RewardModel

    files = identify(str(spec.reward_model), "reward-model")
    return RewardModel(files, device=spec.device, dtype=spec.dtype, batch_tokens=spec.batch_tokens)


def outputs_of(spec: RankSpec) -> tuple[str, ...]:
    """The names of a scorer's outputs, known before it is loaded; `("",)` where it has one."""
    return ("",)


def identity_of(spec: RankSpec) -> dict[str, Any]:
    """What a scorer is, apart from its settings: weights and tokenizer, or the source of a function.

    Raises:
        ModelError: there is no such model, or it is of another kind.
        InputError: there is no such file.
    """
    if spec.reward_model is not None:
        files = identify(spec.reward_model, "reward-model")
        return {"reward_model": files.revision, "tokenizer": files.text_revision}
    return {"function": function_identity(str(spec.function))}


def function_identity(named: str) -> str:
    """The id of a function `FILE.py:NAME`: its name and its file's content.

    Raises:
        InputError: there is no such file.
    """
    file, _, name = named.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"there is no file {file or named}. Name the function as FILE.py:NAME.")
    return f"{name} of {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:ID_DIGITS]}"


def open_comparer(spec: RankSpec) -> Comparer:
    """The judge of two answers that a spec names, loaded.

    Raises:
        ModelError: the model cannot be used.
    """
    raise NotImplementedError
