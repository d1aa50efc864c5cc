"""What an ingest has read, until it is stored."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import cached_property

from prefdata.chat.transforms import Instructions
from prefdata.errors import InputError
from prefdata.formats.reading import Reader
from prefdata.formats.records import KINDS
from prefdata.prompts.collect import PromptCollector, ResponseCollector
from prefdata.prompts.given import given_for
from prefdata.specs import IngestSpec
from prefdata.storage.queries import source_number
from prefdata.storage.run import Run
from prefdata.storage.schemas import CANDIDATES


class Collected:
    """What an ingest has read.

    Attributes:
        name: what the source is called.
        prompts, responses, given: the prompts, the responses by their kind ("all" where one sampler takes them), and
            what rows say of them, for the table that was asked for.
        ids: the run's candidates, for rows that name them.
        counts: what else is counted.
        began: when, in seconds.
    """

    def __init__(self, run: Run, spec: IngestSpec, name: str, reader: Reader) -> None:
        """Begin with nothing."""
        self.began = time.monotonic()
        self.run, self.spec, self.name, self.reader = run, spec, name, reader
        self.instructions = Instructions.of(spec.instructions) if spec.instructions is not None else None
        self._stack = ExitStack()
        number = _next_number(run, name)
        self.prompts = PromptCollector(run.path, seed=spec.seed, test=spec.test, source_number=number)
        self._stack.callback(self.prompts.close)
        self.responses: dict[str, ResponseCollector] = {}
        self.given = given_for(spec.kind, run.path)
        if self.given is not None:
            self._stack.callback(self.given.close)
        self.ids = CandidateIds(run)
        self.counts: Counter[str] = Counter()

    @property
    def kinds(self) -> list[str]:
        """The kinds of responses that there are."""
        return [kind for kind in (*KINDS, "all") if kind in self.responses]

    def responses_of(self, kind: str) -> ResponseCollector:
        """Return the collector for the responses of a kind."""
        if kind not in self.responses:
            self.responses[kind] = ResponseCollector(
                self.run.path,
                len(self.spec.score_columns),
                once=kind == "all",
                remember_places=self.spec.on_duplicates == "error",
            )
            self._stack.callback(self.responses[kind].close)
        return self.responses[kind]

    def close(self) -> None:
        """Give memory and temporary files back."""
        self._stack.close()


class CandidateIds:
    """The run's candidates by id, for rows that name them so; read when the first one is asked for."""

    def __init__(self, run: Run) -> None:
        """Look in a run."""
        self.names: list[str] = []
        self._run = run
        self._numbers: dict[str, int] = {}

    @cached_property
    def prompt_of(self) -> dict[str, str]:
        """The prompt of each candidate."""
        found: dict[str, str] = {}
        for sampler in self._run.all("candidates", partial=True):
            for part in sampler.checked_parts():
                rows = CANDIDATES.read(part, ["candidate_id", "prompt_id"])
                found.update(zip(rows[0].to_pylist(), rows[1].to_pylist(), strict=True))
        return found

    def number(self, candidate: str) -> int:
        """Return a number for a candidate: -1, -2, …; those of the responses read go up from 0."""
        number = self._numbers.setdefault(candidate, -1 - len(self.names))
        if number == -1 - len(self.names):
            self.names.append(candidate)
        return number


def _next_number(run: Run, name: str) -> int:
    """Return the number of a source: its own, or one more than the highest so far."""
    own = run.partition("prompts", name)
    with suppress(InputError):  # damaged, and about to be made again
        if number := source_number(own):
            return number
    return 1 + max((source_number(one) for one in run.partitions("prompts") if one.name != name), default=0)
