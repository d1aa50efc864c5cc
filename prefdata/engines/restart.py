"""A generator that outlives its engine: when the engine dies, another is started and the work continues.

Requests in flight are sent again, so that every request is answered exactly once. A request that was in flight when the
engine died twice runs alone; if that kills it a third time, the request is rejected and the job continues without it,
provided that the engine still answers others. Where it does not, the engine is at fault and its error is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as Steps
from contextlib import suppress
from itertools import chain, zip_longest

from prefdata.engines.protocol import Completion, Generator, Rejection, Request
from prefdata.errors import EngineError
from prefdata.ids import Message

DEATHS = 3
"""Crashes allowed per request, and prompts in a row that crash it alone before the engine counts as broken."""

Answer = Completion | Rejection


def with_restart(open_engine: Callable[[], Generator]) -> Generator:
    """Return the generator that `open_engine` opens, opened again whenever its engine dies.

    A server is not restarted: its generator is returned unchanged.

    Raises:
        As `open_engine` does.
    """
    generator = open_engine()
    return generator if generator.name == "openai" else RestartingGenerator(generator, open_engine)


class RestartingGenerator:
    """A Generator around another one; see `prefdata.engines.protocol.Generator`."""

    def __init__(self, generator: Generator, open_engine: Callable[[], Generator]) -> None:
        """Wrap a generator; `open_engine` opens the next one."""
        self.name = generator.name
        self.model = generator.model
        self.context_length = generator.context_length
        self.renders = generator.renders
        self.computed = generator.computed
        self.versions = generator.versions
        self.template_hash = generator.template_hash
        self._generator = generator
        self._open = open_engine
        self.notes = generator.notes
        self._deaths = 0
        self._answered = False
        self._cause: EngineError | None = None

    def render(
        self, messages: Sequence[Message], tools: str | None = None, holds: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt; see the protocol."""
        return self._generator.render(messages, tools, holds)

    def generate(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer every request once, through the deaths of engines; see the protocol.

        Raises:
            EngineError: the engine cannot be started again, or crashes on every prompt.
        """
        stream = iter(requests)
        again: list[Request] = []
        died: Counter[str] = Counter()
        suspects: dict[str, Request] = {}
        idle_deaths = 0
        while True:
            flying: dict[str, Request] = {}
            error = yield from self._ask(chain(again, stream), flying, suspects)
            if error is None:
                break
            idle_deaths = 0 if flying else idle_deaths + 1
            if idle_deaths == DEATHS:
                raise error
            died = Counter({key: died[key] + 1 for key in flying})
            again = [request for key, request in flying.items() if died[key] == 1]
            for request in interleave_prompts([request for key, request in flying.items() if died[key] > 1]):
                yield from self._ask_alone(request, died[request.key], suspects)
        if suspects and not self._answered and self._cause is not None:
            raise self._cause
        yield from self._convict(suspects)

    def close(self) -> None:
        """Close the engine that is open."""
        self._generator.close()

    def _ask(
        self, requests: Iterable[Request], flying: dict[str, Request], suspects: dict[str, Request]
    ) -> Steps[Answer, None, EngineError | None]:
        """Yield responses until the end or until the engine dies; return its error. `flying` holds the unanswered."""

        def handed() -> Iterator[Request]:
            for request in requests:
                flying[request.key] = request
                yield request

        try:
            for answer in self._generator.generate(handed()):
                del flying[answer.key]
                yield answer
                if isinstance(answer, Completion):
                    self._answered = True
                    yield from self._convict(suspects)
        except EngineError as error:
            self._start_again(error)
            return error
        return None

    def _start_again(self, error: EngineError) -> None:
        self._cause = error
        self._deaths += 1
        with suppress(Exception):  # the engine is dead already
            self._generator.close()
        self._generator = self._open()
        times = "once" if self._deaths == 1 else f"{self._deaths} times"
        self.notes = (*self._generator.notes, f"The engine died {times} and was started again (last: {error})")

    def _ask_alone(self, request: Request, died: int, suspects: dict[str, Request]) -> Steps[Answer, None, None]:
        while died < DEATHS:
            error = yield from self._ask([request], {}, suspects)
            if error is None:
                return
            died += 1
        suspects[request.key] = request
        if len({_prompt(suspect) for suspect in suspects.values()}) == DEATHS and self._cause is not None:
            raise self._cause

    def _convict(self, suspects: dict[str, Request]) -> Iterator[Rejection]:
        """Reject the requests that killed the engine when alone, once it answers others."""
        while suspects:
            key, _ = suspects.popitem()
            yield Rejection(key, "rejected", f"the engine died on it three times: {self._cause}")


def _prompt(request: Request) -> tuple[object, ...]:
    return request.prompt_ids, tuple(tuple(message.items()) for message in request.messages)


def interleave_prompts(requests: list[Request]) -> list[Request]:
    """Order the requests so that those of one prompt are far apart: other prompts' results show which one failed."""
    by_prompt: dict[tuple[object, ...], list[Request]] = {}
    for request in requests:
        by_prompt.setdefault(_prompt(request), []).append(request)
    rounds = zip_longest(*by_prompt.values())
    return [request for one in rounds for request in one if request is not None]
