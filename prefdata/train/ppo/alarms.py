"""Warnings about a training that goes wrong, each once, with what to do. Pure functions of the metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from statistics import fmean, variance
from typing import Any

log = logging.getLogger("prefdata.train")

KL_LIMIT = 50.0
"""KL of a response from the reference, in nats, beyond which text tends to break."""

ENTROPY_SHARE = 0.2
"""The share of its first entropy below which a policy hardly varies any more."""

CLIPPED_SHARE = 0.3
"""The share of tokens whose ratio is clipped beyond which a step changes too much at once."""

LENGTH_FACTOR = 2.0
"""How much longer responses may become than they were."""

ENDED_SHARE = 0.5
"""The share of its first rate of end tokens below which responses no longer end."""

WINDOW = 5
"""Steps of which means are compared, to see a trend."""


class Alarms:
    """Watches the metrics of each step.

    Args:
        state: what an earlier part of the training has seen, as `state` gives it.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        known = state or {}
        self._first: dict[str, float] = dict(known.get("first", {}))
        self._recent: dict[str, list[float]] = {name: list(found) for name, found in known.get("recent", {}).items()}
        self._raised: list[str] = list(known.get("raised", ()))

    @property
    def state(self) -> dict[str, Any]:
        """What `Alarms` continues from, as JSON values."""
        return {"first": self._first, "recent": self._recent, "raised": self._raised}

    def watch(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Look at the metrics of a step (from 1); warns of what is new, and returns the names of those alarms."""
        if not self._first:
            self._first = dict(metrics)
        for name in ("score", *(name for name in metrics if name.startswith("score/"))):
            self._recent[name] = [*self._recent.get(name, []), metrics[name]][-2 * WINDOW :]
        found = {name: text for name, text in self._found(metrics).items() if name not in self._raised}
        for text in found.values():
            log.warning("step %d: %s", step, text)
        self._raised += found
        return list(found)

    def _found(self, now: Mapping[str, float]) -> dict[str, str]:
        first, found = self._first, dict[str, str]()
        if now["kl"] > KL_LIMIT:
            found["kl"] = (
                f"the KL from the reference is {now['kl']:.0f} nats a response. Raise --kl-coef, or give --kl-target."
            )
        if now["entropy"] < ENTROPY_SHARE * first["entropy"]:
            found["entropy"] = (
                f"the entropy fell from {first['entropy']:.2f} to {now['entropy']:.2f} nats a token: responses become "
                "all alike. Raise --kl-coef or --entropy-coef, or lower --lr."
            )
        if now.get("clip_fraction", 0.0) > CLIPPED_SHARE:
            found["clip_fraction"] = (
                f"{now['clip_fraction']:.0%} of the ratios are clipped: a step changes the policy too much. Lower --lr "
                "or --update-epochs, or give --kl-stop."
            )
        if now["tokens"] > LENGTH_FACTOR * first["tokens"]:
            found["tokens"] = (
                f"responses grew from {first['tokens']:.0f} to {now['tokens']:.0f} tokens; the reward may favour "
                "length. Look at some of them, and give --length-coef."
            )
        if now["ended"] < ENDED_SHARE * first["ended"]:
            found["ended"] = (
                f"{now['ended']:.0%} of the responses have an end token, at first {first['ended']:.0%}. Give "
                "--missing-end-penalty, or raise --max-tokens."
            )
        for name in self._recent:
            if name != "score" and self._trend("score") > 0 > self._trend(name):
                found[name] = (
                    f"the reward rises while {name.removeprefix('score/')} falls: the policy may exploit the reward. "
                    "Stop earlier (--max-steps), or raise --kl-coef."
                )
        return found

    def _trend(self, name: str) -> int:
        """1 or -1 where the mean of the last steps differs from those before by over 2 standard errors, else 0."""
        before, after = self._recent[name][:-WINDOW], self._recent[name][-WINDOW:]
        if len(before) < WINDOW:
            return 0
        gap = fmean(after) - fmean(before)
        error = ((variance(before) + variance(after)) / WINDOW) ** 0.5
        return 0 if abs(gap) <= 2 * error else 1 if gap > 0 else -1
