"""Work that is done share by share, by one process or by several that were given the same command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from prefdata.storage.leases import WorkLeases

Row = TypeVar("Row")
Todo = TypeVar("Todo")

_WAIT_SECONDS = 1.0


@dataclass
class LeasedWork(Generic[Row, Todo]):
    """The shares of a work, and what each of them lacks.

    Attributes:
        claims: who does which.
        shares: all of them, by name, the same in every process.
        lacking: what is missing of a share's rows: empty or None where nothing is.
        refresh: look again at what is stored, by others too.
    """

    claims: WorkLeases
    shares: Callable[[], Iterable[tuple[str, list[Row]]]]
    lacking: Callable[[list[Row]], list[Todo]]
    refresh: Callable[[], None]

    def passes(self) -> Iterator[Iterator[tuple[list[Row], list[Todo]]]]:
        """One stream of shares to do after the other, until nothing is missing that is not done or under way here.

        Rows that are complete come too, with nothing to do, so that a watcher can count them.
        """
        while True:
            held: list[str] = []
            yield self._free(held)
            if not held:
                return
            time.sleep(_WAIT_SECONDS)
            self.refresh()

    def _free(self, held: list[str]) -> Iterator[tuple[list[Row], list[Todo]]]:
        """Yield the shares that no other living process has; those that one has are appended to `held`."""
        for name, rows in self.shares():
            todo = self.lacking(rows)
            if todo:
                took = self.claims.acquire(name)
                if took in ("left", "finished"):  # by another, who may have stored some of it since we looked
                    self.refresh()
                    todo = self.lacking(rows)
                    took = self.claims.acquire(name, again=True) if took == "finished" and todo else took
                if took == "held":
                    held.append(name)
                    continue
            yield rows, todo
