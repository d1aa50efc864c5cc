"""Batches that memory does not hold are computed again at half the size: for engines, scorers and training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from prefdata.errors import EngineError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("prefdata.models")

_CPU_REFUSALS = ("DefaultCPUAllocator", "not enough memory")
"""What torch says when a CPU's memory ends; it has no type of its own."""


class TokenBudget:
    """The most tokens of a batch: so many at first, and half of it each time that memory does not hold a batch.

    Attributes:
        given: tokens at first.
        tokens: tokens now.
    """

    def __init__(self, given: int, option: str = "--batch-tokens") -> None:
        """Begin with `given` tokens, which the user sets with `option`."""
        self.given = self.tokens = given
        self._option = option

    def batches(
        self, items: Sequence[T], compute: Callable[[Sequence[T], int], Iterable[tuple[Sequence[T], R]]]
    ) -> Iterator[R]:
        """Compute items in batches, and those that are left when memory ends in smaller ones.

        Args:
            items: what is computed.
            compute: goes through items within so many tokens, and gives each batch with its result.

        Raises:
            EngineError: memory does not hold the smallest batch.
        """
        left = items
        while True:
            done: set[int] = set()
            try:
                for batch, result in compute(left, self.tokens):
                    yield result
                    done.update(map(id, batch))
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()  # outside of the handler, which holds the tensors of what failed
            left = [item for item in left if id(item) not in done]

    def whole(self, compute: Callable[[int], R]) -> R:
        """Compute something within so many tokens, and all of it again within half of them when memory ends.

        Raises:
            EngineError: memory does not hold the smallest batch.
        """
        while True:
            try:
                return compute(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()

    def _halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.tokens == 1:
            raise EngineError(
                f"memory does not hold one row, whatever the {self._option}. Use a smaller model or shorter texts "
                "(sample: --max-model-len, train: --max-length), or a GPU with more memory."
            )
        if self.tokens == self.given:
            log.warning(
                "memory does not hold batches of %s tokens: smaller ones are computed (%s %d begins with them).",
                f"{self.tokens:,}",
                self._option,
                self.tokens // 2,
            )
        self.tokens //= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory, or the CPU's, is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_REFUSALS)
