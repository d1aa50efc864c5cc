"""Responses and verdicts of a row, from the columns of a layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefdata.formats import casts
from prefdata.formats.layout_maps import ResponseMap, VerdictMap
from prefdata.formats.messages import Turns, are_turns, conversation_within, is_turn, parsed, text_within, turns_of
from prefdata.formats.paths import dig, filled, getter
from prefdata.formats.records import BadRowError, Response, Verdict
from prefdata.formats.transcripts import Transcript, transcript

OBJECT_TEXTS = ("response", "answer", "completion", "text", "output", "content", "generation", "message", "body")
"""The keys of the response in an object of a list."""

Values = Mapping[str, Any]


class Whole:
    """A side that is a whole conversation; the prompt follows from all sides (`shared_turns`)."""

    __slots__ = ("rest", "source", "tools", "turns")

    def __init__(self, turns: Turns, source: Transcript | None = None, tools: Any = None) -> None:
        self.turns, self.source, self.tools = turns, source, tools


class ResponseReader:
    """Reader of the responses of one entry of a layout."""

    def __init__(self, entry: ResponseMap, *, turns: bool = False) -> None:
        """Compile an entry; with `turns` a response is a list of texts, one for each turn of the user."""
        self._map, self._turns = entry, turns
        self._columns = [(name, getter(name)) for name in (entry.column or entry.each)]
        self._model, self._label, self._rank = (
            [(name, getter(name)) for name in names] for names in (entry.model, entry.label, entry.rank)
        )
        self._attributes = {name: getter(path) for name, path in entry.attributes.items()}

    def read(self, values: Values, notes: Counter[str]) -> list[tuple[Response, Whole | None]]:
        """Read the responses; one that is part of a whole conversation has no turns yet.

        Raises:
            BadRowError: the value is not a response.
        """
        name, value = next(
            ((n, v) for n, get in self._columns if (v := get(values)) is not None and v != []), ("", None)
        )
        if value is None:
            return []
        if self._map.each:
            return self._listed(name, casts.as_json(value), values, notes)
        parts = value if not self._turns and self._several(value) else [value]
        found: list[tuple[Response, Whole | None]] = []
        for number, part in enumerate(parts):
            response = Response(self._map.kind, (), self._model_of(values), names=self._names(name, number))
            response.label = self._label_of(values, name)
            response.rank = next((casts.finite(v, n) for n, get in self._rank if (v := get(values)) is not None), None)
            response.attributes = {
                key: v[number] if isinstance(v, list) and len(v) == len(parts) > 1 else v
                for key, get in self._attributes.items()
                if (v := get(values)) is not None
            }
            response.item = part if isinstance(part, Mapping) and not is_turn(part) else None
            if self._turns:
                _fill_turns(response, part, name)
                found.append((response, None))
            else:
                found.append((response, fill(response, part, name, notes)))
        return found

    def _several(self, value: Any) -> bool:
        """Tell whether a side's column holds several responses: texts, or for chosen and rejected conversations."""
        if not isinstance(value, list) or not value or self._map.kind == "response":
            return False
        return all(isinstance(one, str) for one in value) or all(are_turns(one) for one in value)

    def _names(self, column: str, number: int) -> tuple[str, ...]:
        last = column.rpartition(".")[2]
        return (last, *self._map.names) if number == 0 else (f"{last}[{number}]",)

    def _model_of(self, values: Values) -> str | None:
        return next((str(v) for _, get in self._model if isinstance(v := get(values), str | int) and v != ""), None)

    def _label_of(self, values: Values, name: str) -> bool | None:
        return next((casts.label(v, n) for n, get in self._label if (v := get(values)) is not None), None)

    def _listed(
        self, name: str, items: Any, values: Values, notes: Counter[str]
    ) -> list[tuple[Response, Whole | None]]:
        if not isinstance(items, list):
            raise BadRowError("not_text", f"{name} should be a list of responses, not {casts.shown(items)}")
        models = self._beside(self._model, values, len(items))
        ranks = self._beside(self._rank, values, len(items))
        labels = self._beside(self._label, values, len(items))
        found = []
        for number, item in enumerate(items):
            inner = item if isinstance(item, Mapping) and not is_turn(item) else None
            value = self._within(inner) if inner is not None else item
            if value is None:
                notes["null responses"] += 1
                continue
            own = values if inner is None else inner
            response = Response(self._map.kind, (), item=inner, names=(str(number),))
            response.model = self._model_of(inner) if inner is not None else None
            if models is not None and response.model is None:
                response.model = None if models[number] is None else str(models[number])
            rank = ranks[number] if ranks is not None else self._first(self._rank, own) if inner is not None else None
            if rank is not None:
                response.rank = casts.finite(rank, f"the rank of {name}[{number}]")
            elif self._map.best_first:
                response.rank = float(number)
            said = (
                labels[number] if labels is not None else self._first(self._label, own) if inner is not None else None
            )
            response.label = None if said is None else casts.label(said, f"the label of {name}[{number}]")
            if inner is not None:
                response.attributes = {key: v for key, v in inner.items() if v is not None and v is not value}
            for key, get in self._attributes.items():
                beside = get(values)
                if isinstance(beside, list) and len(beside) == len(items):
                    response.attributes[key] = beside[number]
            found.append((response, fill(response, value, f"{name}[{number}]", notes)))
        return found

    @staticmethod
    def _beside(getters: Sequence[Any], values: Values, count: int) -> list[Any] | None:
        """Return a list with one element per response from another column, or None."""
        found = (casts.as_json(v) for _, get in getters if (v := get(values)) is not None)
        return next((value for value in found if isinstance(value, list) and len(value) == count), None)

    @staticmethod
    def _first(getters: Sequence[Any], values: Values) -> Any:
        return next((v for _, get in getters if (v := get(values)) is not None), None)

    def _within(self, item: Values) -> Any:
        keys = self._map.text or OBJECT_TEXTS
        return next((value for key in keys if (value := dig(item, key)) is not None), None)


def _fill_turns(response: Response, value: Any, name: str) -> None:
    """Set a response's assistant turns from a list of texts, or from that list as JSON."""
    texts = casts.as_json(value)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRowError("not_text", f"{name} should be a list of texts, one for each turn")
    response.turns = [{"role": "assistant", "content": text} for text in texts]


def fill(response: Response, value: Any, name: str, notes: Counter[str]) -> Whole | None:
    """Set a response's turns; a whole conversation, which begins with the prompt, is returned.

    Raises:
        BadRowError: the value is not a text, message or conversation.
    """
    tools = None
    if isinstance(value, str):
        found = parsed(value, name)
        if found is None:
            if written := transcript(value):
                return Whole(written.turns, written)
            response.turns, response.plain = [{"role": "assistant", "content": value}], value
            return None
        value = found
    inner = conversation_within(value)
    if inner is not None:
        value, tools = inner, value.get("tools")
    if is_turn(value):
        value = [value]
    if are_turns(value):
        turns = turns_of(value, notes)
        if turns and turns[0]["role"] != "assistant":
            return Whole(turns, None, tools)
        response.turns = checked(turns, name)
        return None
    if isinstance(value, Mapping):
        response.turns = [{"role": "assistant", "content": text_within(value, name)}]
        return None
    raise BadRowError("not_text", f"{name} should be a text, a message or a conversation, not {casts.shown(value)}")


def checked(turns: Turns, name: str) -> Turns:
    """Check that a response's turns begin and end with the assistant's.

    Raises:
        BadRowError: they do not.
    """
    if not turns or turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns) or "none"
        raise BadRowError(
            "response_turns", f"{name} has the turns {roles}, but should begin and end with the assistant's"
        )
    return turns


def shared_turns(wholes: Sequence[Whole]) -> Turns:
    """Find the common start of whole conversations that leaves at least one turn of each.

    The prompt ends with a message that the assistant answers: a common turn of the assistant is part of it only if a
    common turn of the user follows.
    """
    shortest = min(len(whole.turns) for whole in wholes)
    count = 0
    while count < shortest - 1 and all(whole.turns[count] == wholes[0].turns[count] for whole in wholes):
        count += 1
    while count and wholes[0].turns[count - 1]["role"] == "assistant":
        count -= 1
    return wholes[0].turns[:count]


def _numbered(more: Mapping[str, Any], number: int) -> str:
    """Name one of several annotators."""
    return " ".join([*([more["annotator"]] if more.get("annotator") else []), str(number + 1)])


class VerdictReader:
    """Reader of one verdict of a layout."""

    def __init__(self, entry: VerdictMap) -> None:
        self.map = entry
        self._columns = [(name, getter(name)) for name in entry.column]

    def read(self, values: Values, responses: Sequence[Response], more: Mapping[str, Any]) -> list[Verdict]:
        """Read a row's verdict: the best response against each other one; `more` has the verdict's other columns.

        Raises:
            BadRowError: the verdict is unknown, or names responses that the row does not have.
        """
        if self.map.annotator is not None:
            more = {**more, "annotator": filled(self.map.annotator, values)}
        if self.map.cast == "scores":
            return self._by_scores(responses, more)
        if self.map.cast == "one-hot":
            return self._one_hot(values, responses, more)
        if self.map.better is not None:
            return self._relations(self._better(values, responses), responses, more)
        name, value = next(((n, v) for n, get in self._columns if (v := get(values)) is not None), ("", None))
        found = casts.as_json(value)
        several = found if isinstance(found, list) else [found]
        verdicts = []
        for number, one in enumerate(several):
            own = {**more, "annotator": _numbered(more, number)} if isinstance(found, list) else more
            verdicts += self._relations(self._answer(name, one, responses), responses, self._strength(one, own))
        return verdicts

    def _answer(self, name: str, value: Any, responses: Sequence[Response]) -> casts.Answer:
        if value is None or (isinstance(value, float) and value != value):
            return None
        if self.map.values:
            return self._own_words(name, value)
        names, models = [one.names for one in responses], [one.model for one in responses]
        number = casts.number_of(value)
        try:
            if self.map.cast == "index":
                return casts.named(str(int(number)) if number is not None else str(value), names)
            if number is not None and self.map.cast != "words":
                return casts.by_number(number, self.map.cast)
            return casts.by_words(value, names, models)
        except (KeyError, ValueError):
            known = ", ".join(dict.fromkeys(name for one in names for name in one))
            raise BadRowError("verdict", f"{name} is {value!r}; known: {known}, first, second, A>B, tie") from None

    def _own_words(self, name: str, value: Any) -> casts.Answer:
        key = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if key not in self.map.values:
            raise BadRowError("verdict", f"{name} is {value!r}; known: {', '.join(self.map.values)}")
        return {"first": 0, "second": 1, "tie": 0.5, "none": None}[self.map.values[key]]

    def _better(self, values: Values, responses: Sequence[Response]) -> casts.Answer:
        assert self.map.better is not None
        column = filled(self.map.better, values)
        found = [i for i, one in enumerate(responses) if column in one.names]
        if len(found) != 1:
            raise BadRowError("verdict", f"{self.map.better} is {column}, but there is no such response")
        return found[0]

    def _one_hot(self, values: Values, responses: Sequence[Response], more: Mapping[str, Any]) -> list[Verdict]:
        marks = [casts.number_of(get(values)) for _, get in self._columns]
        if sum(mark or 0 for mark in marks) != 1:
            raise BadRowError("verdict", f"exactly one of {', '.join(self.map.column)} should be 1")
        place = marks.index(1)
        return self._relations(place if place < len(responses) else 0.5, responses, more)

    def _by_scores(self, responses: Sequence[Response], more: Mapping[str, Any]) -> list[Verdict]:
        (name,) = self.map.column
        scores = [casts.number_of(one.attributes.get(name)) for one in responses]
        known = [(score, i) for i, score in enumerate(scores) if score is not None]
        return [
            self._verdict(i, j, 1.0 if a > b else 0.0 if b > a else 0.5, more)
            for n, (a, i) in enumerate(known)
            for b, j in known[n + 1 :]
        ]

    def _relations(self, answer: casts.Answer, responses: Sequence[Response], more: Mapping[str, Any]) -> list[Verdict]:
        if answer is None:
            return []
        if len(responses) < 2:
            raise BadRowError("no_responses", "there is a verdict, but fewer than two responses")
        if isinstance(answer, float):
            if len(responses) > 2 and answer != 0.5:
                raise BadRowError("verdict", f"a number on one scale compares two responses, not {len(responses)}")
            return [self._verdict(0, 1, answer, more)] if len(responses) == 2 else []
        others = [i for i in range(len(responses)) if i != answer]
        return [self._verdict(min(answer, i), max(answer, i), float(answer < i), more) for i in others]

    def _verdict(self, first: int, second: int, probability: float, more: Mapping[str, Any]) -> Verdict:
        given = {key: value for key, value in more.items() if value is not None}
        return Verdict(first, second, probability, name=self.map.name, **given)

    def _strength(self, value: Any, more: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read the strength from the verdict itself: `A>>B`, or the size of a number on a scale of several steps."""
        if more.get("strength") is not None:
            return more
        if isinstance(value, str) and (">>" in value or "<<" in value):
            return {**more, "strength": value.strip("[]() ")}
        number = casts.number_of(value)
        if number is not None and self.map.cast in ("negative-first", "positive-first"):
            return {**more, "strength": f"{abs(number):g}"}
        return more
