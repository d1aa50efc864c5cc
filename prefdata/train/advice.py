"""What a training run should be warned of: settings and metrics that rarely are what was meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefdata.train.adapter_specs import AdapterSpec

LARGE = 100_000_000
"""Parameters from which on the usual learning rates hold: small models want larger ones."""

USUAL_LR = {
    "train sft": (1e-7, 1e-4),
    "train rm": (1e-7, 1e-4),
    "train dpo": (5e-8, 5e-5),
    "train kto": (5e-8, 5e-5),
}
"""Smallest and largest peak learning rate of AdamW in published recipes for all weights, by command."""

OF_ADAPTERS = (5e-6, 2e-3)
"""The same for LoRA, in every command."""

ENOUGH_PAIRS = 50
"""Pairs from which on it is no chance that the chosen response wins each of them."""


def unusual_lr(spec: AdapterSpec, parameters: int) -> str | None:
    """Return a warning where the learning rate is unusual for the method and a model of so many parameters."""
    if parameters < LARGE or spec.step not in USUAL_LR:
        return None
    low, high = USUAL_LR[spec.step] if spec.lora_r is None else OF_ADAPTERS
    if low <= spec.lr <= high:
        return None
    method = f"{spec.step} of all weights" if spec.lora_r is None else "a LoRA adapter"
    effect = "the model may hardly change" if spec.lr < low else "training may become unstable"
    return f"--lr {spec.lr:g} is unusual for {method} ({low:g} to {high:g}): {effect}."


def too_easy(first: Mapping[str, Sequence[float]]) -> str | None:
    """Return a warning where the chosen responses win all pairs of a run's first tenth.

    Args:
        first: sum and count of each metric over the first tenth.
    """
    won, pairs = first.get("rewards/accuracies", (0.0, 0.0))
    if pairs < ENOUGH_PAIRS or won < pairs:
        return None
    return (
        f"the chosen responses win all {pairs:.0f} pairs of the first tenth of the steps. Something simple may tell "
        "the two sides apart (a length, a marker, a model that wrote one of them): look at some pairs."
    )
