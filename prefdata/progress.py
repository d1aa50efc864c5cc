"""Progress: how a long step tells whoever is watching where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often; `done` of `total` units are finished, and `figures` are running numbers (tokens, loss, …)."""

    def __call__(self, done: int, total: int, **figures: float) -> None:
        """Take note."""


def quiet(done: int, total: int, **figures: float) -> None:
    """Nobody is watching."""
