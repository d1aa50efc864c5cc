"""LLM-as-a-judge: a language model judges a response, or two, and a rubric defines how its reply is read.

A judge is asked at temperature 0 (or the only one that a server takes), under the verdict's JSON schema where its
engine enforces one. A reply that cannot be read is asked for again, at `RETRY_TEMPERATURE` and with another seed, until
the tries are used up; then there is no score, and the last reply is kept. No verdict is ever invented.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from prefdata import ids
from prefdata.chat.template import VERDICTS, TemplateRefusal
from prefdata.engines.protocol import Completion, Generator, Rejection, Request, Sampling
from prefdata.errors import UsageError
from prefdata.ids import Message
from prefdata.scorers.judge.rubrics import RATIONALE, Rubric
from prefdata.scorers.protocol import Comparison, Score, ScoringItem, Verdict

RETRY_TEMPERATURE = 0.7

Case = tuple[str, tuple[Message, ...], tuple[str, ...]]
"""A key, the messages that the judge is shown for it, and the responses that they quote."""

PROBABILITIES = {"A": 1.0, "B": 0.0, "tie": 0.5}
WINNERS = {"A": "first", "B": "second", "tie": "tie"}
_REASONS = {"prompt_too_long": "too_long", "refused": "refused", "rejected": "error"}


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one case.

    Attributes:
        key: the case's.
        shown: id of the messages that the judge was shown.
        verdict: what was read, or None.
        reason: why nothing was read (`unparsable`, `refused`, `too_long`, `error`, a TemplateRefusal's), or None.
        text: the judge's last reply, or the engine's reason for giving none.
        tries: how many queries it took.
    """

    key: str
    shown: str
    verdict: dict[str, Any] | None
    reason: str | None
    text: str
    tries: int


@dataclass(frozen=True, slots=True)
class _Asked:
    key: str
    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    shown: str
    tries: int


class _Judge:
    """The common part of both judges: cases stream through the engine, and unreadable ones are asked again."""

    def __init__(
        self, generator: Generator, rubric: Rubric, *, max_tokens: int = 512, tries: int = 3, seed: int = 0
    ) -> None:
        """Judge by `rubric` on an engine that is open already; `close` closes it.

        Args:
            generator: the judge's engine.
            rubric: what the judge is asked, and how its reply is read.
            max_tokens: the longest reply.
            tries: the maximum number of queries for a case.
            seed: of the retries.

        Raises:
            UsageError: the rubric is of the other kind.
        """
        if rubric.kind != self.kind:
            raise UsageError(f"the rubric is of the kind {rubric.kind}, and this judge needs one of {self.kind}.")
        self.generator = generator
        self.rubric = rubric
        self._schema = rubric.verdict_schema()
        self.max_tokens, self.tries, self.seed = max_tokens, tries, seed
        self.versions, self.computed = generator.versions, generator.computed

    kind = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """The engine's notes, and whether it enforces the verdict's schema."""
        unenforced = "transformers enforces no JSON schema: a reply that is not as asked is asked for again."
        return (*self.generator.notes, *((unenforced,) if self.generator.name == "transformers" else ()))

    def close(self) -> None:
        """Close the engine."""
        self.generator.close()

    def _replies(self, cases: Iterable[Case]) -> Iterator[Reply]:
        """Every case's reply, once, as the engine gives them."""
        self._stream = iter(cases)
        self._numbers = count()
        self._again: deque[_Asked] = deque()
        self._lost: deque[Reply] = deque()
        self._flying: dict[str, _Asked] = {}
        more = True
        while more:
            for answer in self.generator.generate(self._requests()):
                reply = self._reply(self._flying.pop(answer.key), answer)
                if reply is not None:
                    yield reply
                yield from self._lost_ones()
            yield from self._lost_ones()
            more = bool(self._again)

    def _lost_ones(self) -> Iterator[Reply]:
        while self._lost:
            yield self._lost.popleft()

    def _requests(self) -> Iterator[Request]:
        """Yield the queries: retries before new cases, so that few of them wait at a time."""
        while (asked := self._again.popleft() if self._again else self._next()) is not None:
            self._flying[key := str(next(self._numbers))] = asked
            seed = ids.seed(self.seed, "judge", asked.shown, asked.tries)
            yield Request(key, asked.prompt_ids, seed, self._sampling(asked.tries), asked.messages)

    def _sampling(self, tries: int) -> Sampling:
        temperature = 0.0 if tries == 1 else RETRY_TEMPERATURE
        return Sampling(
            temperature,
            top_p=1.0,
            top_k=0,
            max_tokens=self.max_tokens,
            json_schema=self._schema,
            any_temperature=True,
        )

    def _next(self) -> _Asked | None:
        """Return the next new case; those that the judge's template does not take are lost."""
        for key, messages, responses in self._stream:
            shown = ids.digest([dict(message) for message in messages])
            try:
                prompt_ids = self.generator.render(messages, holds=responses) if self.generator.renders else ()
            except TemplateRefusal as error:
                self._lost.append(Reply(key, shown, None, error.reason, str(error), 0))
                continue
            return _Asked(key, messages, prompt_ids, shown, 1)
        return None

    def _reply(self, asked: _Asked, answer: Completion | Rejection) -> Reply | None:
        """Read the result of a query; None where it is to be asked again."""
        if isinstance(answer, Rejection):
            return Reply(asked.key, asked.shown, None, _REASONS[answer.status], answer.detail, asked.tries)
        verdict = self.rubric.read(answer.text)
        if verdict is None and asked.tries < self.tries:
            self._again.append(_Asked(asked.key, asked.messages, asked.prompt_ids, asked.shown, asked.tries + 1))
            return None
        reason = "unparsable" if verdict is None else None
        return Reply(asked.key, asked.shown, verdict, reason, answer.text, asked.tries)


class AbsoluteJudge(_Judge):
    """A Scorer: the mean of a rubric's aspects by their weights; see `prefdata.scorers.protocol.Scorer`.

    Details hold `aspects`, `rationale` and `tries`; without a verdict, `reply` and `tries`.
    """

    kind = "absolute"
    outputs: tuple[str, ...] = ("",)

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Judge every item once; see the protocol. The hash covers all that the judge was shown."""
        lacking: deque[Score] = deque()
        for reply in self._replies(self._cases(items, lacking)):
            yield self._scored(reply)
            while lacking:
                yield lacking.popleft()
        yield from lacking

    def _cases(self, items: Iterable[ScoringItem], lacking: deque[Score]) -> Iterator[Case]:
        for item in items:
            if self.rubric.needs_reference and item.reference is None:
                lacking.append(Score(item.key, None, "no_reference", None, None))
                continue
            texts = {"response": item.response, "reference": item.reference}
            yield item.key, self.rubric.messages(item.messages, **texts), (item.response,)

    def _scored(self, reply: Reply) -> Score:
        if reply.verdict is None:
            details = {"reply": reply.text, "tries": reply.tries}
            return Score(reply.key, None, reply.reason, reply.shown, details)
        verdict = reply.verdict
        aspects = {aspect.name: verdict[aspect.name] for aspect in self.rubric.aspects}
        weights = sum(aspect.weight for aspect in self.rubric.aspects)
        score = sum(aspect.weight * verdict[aspect.name] for aspect in self.rubric.aspects) / weights
        details = {"aspects": aspects, "rationale": verdict.get(RATIONALE), "tries": reply.tries}
        return Score(reply.key, score, None, reply.shown, details)


class PairwiseJudge(_Judge):
    """A Comparer: which of two responses a judge prefers; see `prefdata.scorers.protocol.Comparer`.

    A is the response shown first: the probability is 1 for A, 0 for B and 0.5 for a tie. `strength` is a word of the
    rubric. Without a verdict, `rationale` is the judge's reply.
    """

    kind = "pairwise"

    def __init__(
        self,
        generator: Generator,
        rubric: Rubric,
        *,
        annotator: str | None = None,
        max_tokens: int = 512,
        tries: int = 3,
        seed: int = 0,
    ) -> None:
        """Judge by `rubric`; see `AbsoluteJudge`. `annotator` names the verdicts' annotator, the model unless given.

        Raises:
            UsageError: the rubric is of the other kind.
        """
        super().__init__(generator, rubric, max_tokens=max_tokens, tries=tries, seed=seed)
        self.annotator = annotator or generator.model.name

    def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
        """Judge every comparison once, in the order in which it shows its responses; see the protocol."""
        yield from map(self._verdict, self._replies(map(self._case, matches)))

    def _case(self, match: Comparison) -> Case:
        messages = self.rubric.messages(match.messages, first=match.shown, second=match.other)
        return match.key, messages, (match.shown, match.other)

    def _verdict(self, reply: Reply) -> Verdict:
        if reply.verdict is None:
            reason = reply.reason or "error"
            return Verdict(reply.key, None, VERDICTS.get(reason, reason), rationale=reply.text)
        verdict = str(reply.verdict["verdict"])
        strength = None if verdict == "tie" else reply.verdict.get("strength")
        return Verdict(reply.key, PROBABILITIES[verdict], WINNERS[verdict], strength, reply.verdict.get(RATIONALE))
