"""Verifiers: whether a response is right, 1 or 0, by a rule and not by a model. Each is a Scorer.

A wrong answer, and one in which nothing can be found to check, is 0. Where the rule itself has nothing to check
against (no reference answer, or one that cannot be read) there is no score but a reason. The text hash is that of the
response alone. The details hold what was found.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefdata import ids
from prefdata.errors import InputError, did_you_mean
from prefdata.scorers.protocol import Score, Scorer, ScoringItem
from prefdata.scorers.rules.function import file_and_name, judged, load_function, storable, words_of
from prefdata.scorers.rules.number_parsing import final_number, unfenced
from prefdata.scorers.rules.subprocess_pool import SubprocessPool

Found = tuple[float | None, str | None, dict[str, Any] | None]
"""Score, reason and details of one response."""

_LETTERS = "ABCDEFGHIJ"
_SAID = re.compile(
    r"\b(?:answer|choice|option)(?:\s+is)?\s*[:=]?[\s\"'*_$]*(?:\\boxed\{)?\(?([A-Z])\b(?!['’])"
    r"|####\s*\(?([A-Z])\b|\\boxed\{\(?([A-Z])\)?\}",
    re.IGNORECASE,
)
_LISTED = re.compile(r"\(([A-Z])\)|(?:^|\s)\**([A-Z])(?:\)|\.(?=\s|$)|:)", re.MULTILINE)


class RuleScorer:
    """A Scorer on a rule Item -> Found that answers at once; see `prefdata.scorers.protocol.Scorer`."""

    outputs: tuple[str, ...] = ("",)

    def __init__(self, rule: Callable[[ScoringItem], Found]) -> None:
        self.versions = _python()
        self._rule = rule

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item, in order."""
        for item in items:
            yield _scored(item, self._rule)

    def close(self) -> None:
        """Nothing to free."""


class TimedRuleScorer:
    """A Scorer on code that may hang, in worker processes; see `prefdata.scorers.protocol.Scorer`."""

    outputs: tuple[str, ...] = ("",)

    def __init__(self, rule: str, argument: str, *, time_limit: float, workers: int) -> None:
        self.versions = _python()
        self._workers = SubprocessPool(f"{__name__}:{rule}", argument, limit=time_limit, count=workers)

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item, in the order of completion."""
        return self._workers.score(items)

    def start(self) -> None:
        """Start a process, so that what cannot be loaded is known; see `SubprocessPool.start`."""
        self._workers.start()

    def close(self) -> None:
        """End the processes."""
        self._workers.close()


def open_verifier(named: str, *, time_limit: float = 5.0, workers: int = 2) -> Scorer:
    """Open the verifier with that name.

    Args:
        named: `number`, `choice`, `regex:PATTERN`, `json-schema:FILE` or `FILE.py:NAME`.
        time_limit: seconds that one response may take, for a pattern, a schema and a function.
        workers: processes, for a pattern, a schema and a function.

    Raises:
        InputError: there is no such verifier, file or function; the pattern or the schema is broken; the library for
            schemas is missing; a function's file cannot be imported.
        EngineError: importing the file ends the process.
    """
    kind, colon, rest = named.partition(":")
    if kind == "regex" and colon:
        _compiled(rest)
        return TimedRuleScorer("regex_rule", rest, time_limit=time_limit, workers=workers)
    if kind == "json-schema" and colon:
        json_schema_rule(rest)
        return TimedRuleScorer("schema_rule", rest, time_limit=time_limit, workers=workers)
    rules: dict[str, Callable[[ScoringItem], Found]] = {"number": number_rule, "choice": choice_rule}
    if named in rules:
        return RuleScorer(rules[named])
    file, _, _ = named.rpartition(":")
    if file.endswith(".py"):
        file_and_name(named)
        check = TimedRuleScorer("function_rule", named, time_limit=time_limit, workers=workers)
        check.start()
        return check
    known = [*rules, "regex:PATTERN", "json-schema:FILE", "FILE.py:NAME"]
    raise InputError(f"there is no verifier {named!r}.{did_you_mean(named, known)}")


def number_rule(item: ScoringItem) -> Found:
    """1 where the number that the response ends on is the reference's; see `number_parsing.final_number`."""
    if item.reference is None:
        return None, "no_reference", None
    wanted = final_number(item.reference)
    if wanted is None:
        return None, "reference_has_no_number", None
    found = final_number(item.response)
    details = {"found": None if found is None else [str(value) for value in sorted(found)]}
    return float(found is not None and bool(found & wanted)), None, details


def choice_rule(item: ScoringItem) -> Found:
    """1 where the letter that the response chooses is the reference's; see `chosen_letter`."""
    if item.reference is None:
        return None, "no_reference", None
    wanted = chosen_letter(item.reference)
    if wanted is None:
        return None, "reference_has_no_choice", None
    found = chosen_letter(item.response)
    return float(found == wanted), None, {"found": found}


def chosen_letter(text: str) -> str | None:
    r"""Return the letter A to J that a response chooses, or None.

    In this order: the text is a letter alone; it names its answer ("the answer is (B)", "Option: c", "#### B",
    "\boxed{B}"; the last time it does); it writes a letter as lists do ("B) because …", "(B)"), and only one of them.
    """
    alone = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", text)
    if alone and alone[1].upper() in _LETTERS:
        return alone[1].upper()
    letters = [letter for match in _SAID.finditer(text) if (letter := _letter(match))]
    if letters:
        return letters[-1]
    listed = {letter for match in _LISTED.finditer(text) if (letter := _letter(match))}
    return listed.pop() if len(listed) == 1 else None


def _letter(match: re.Match[str]) -> str | None:
    """Return the letter of a match; not that of "the answer is a number" or "the answer, I think"."""
    letter = next(group for group in match.groups() if group)
    follows = match.string[match.end() : match.end() + 2]
    if letter in "aiI" and re.match(r"\s\w", follows):
        return None
    return letter.upper() if letter.upper() in _LETTERS else None


def regex_rule(pattern: str) -> Callable[[ScoringItem], Score]:
    """1 where the pattern is found; where it has a group and there is a reference, where the last find equals that."""
    compiled = _compiled(pattern)
    return partial(_scored, rule=partial(_regex, compiled))


def _regex(pattern: re.Pattern[str], item: ScoringItem) -> Found:
    newest = deque(pattern.finditer(item.response), maxlen=1)
    if not newest:
        return 0.0, None, {"found": None}
    last = newest[0]
    if not pattern.groups or item.reference is None:
        return 1.0, None, {"found": last[0]}
    found = next((group for group in last.groups() if group is not None), "")
    return float(found.strip() == item.reference.strip()), None, {"found": found}


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise InputError(f"the pattern {pattern!r} is not a regular expression: {error}.") from error


def json_schema_rule(file: str) -> Callable[[ScoringItem], Found]:
    """1 where the response (or its last ``` block) is JSON that fits the schema in `file`; nothing is fetched for $ref.

    Raises:
        InputError: jsonschema is not installed; the file cannot be read, or is no schema.
    """
    try:
        import jsonschema  # type: ignore[import-untyped, unused-ignore]
        import referencing
    except ImportError as error:
        raise InputError("checking against a JSON schema needs jsonschema: pip install jsonschema.") from error
    try:
        schema = json.loads(Path(file).read_text("utf-8"))
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(f"{file} is not a JSON schema: {storable(error.message)}.") from error
    except Exception as error:  # the library raises arbitrary errors at an invalid schema
        raise InputError(f"{file} is not a JSON schema that can be read: {words_of(error)}.") from error
    return partial(_json_schema, kind(schema, registry=referencing.Registry()))


def schema_rule(file: str) -> Callable[[ScoringItem], Score]:
    """`json_schema_rule` for a worker: a pattern in a schema may take as long as any other."""
    return partial(_scored, rule=json_schema_rule(file))


def _json_schema(validator: Any, item: ScoringItem) -> Found:
    try:
        value = json.loads(unfenced(item.response), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return 0.0, None, {"error": f"not JSON: {words_of(error)}"}
    try:
        wrong = next(validator.iter_errors(value), None)
    except Exception as error:  # a $ref that leads nowhere, found only where it is followed
        return None, type(error).__name__, {"error": words_of(error)}
    if wrong is None:
        return 1.0, None, None
    return 0.0, None, {"error": storable(wrong.message), "at": storable(wrong.json_path)}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def function_rule(named: str) -> Callable[[ScoringItem], Score]:
    """Return a rule from a user's f(messages, response): a number, True or False, None, or a dict with `score`.

    It is given `reference` and `metadata` too where it has parameters of those names.
    """
    function = load_function(named)
    wants = [name for name in ("reference", "metadata") if name in _parameters(function)]
    return partial(_function, function, wants)


def _function(function: Callable[..., Any], wants: Sequence[str], item: ScoringItem) -> Score:
    also = {name: getattr(item, name) for name in wants}
    return judged(item, lambda: function([dict(message) for message in item.messages], item.response, **also))


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except BaseException:  # a function without a signature: written in C, or an object that refuses
        return set()


def _scored(item: ScoringItem, rule: Callable[[ScoringItem], Found]) -> Score:
    score, reason, details = rule(item)
    return Score(item.key, score, reason, ids.text_hash(item.response), details)


def _python() -> dict[str, str]:
    return {"python": ".".join(map(str, sys.version_info[:3]))}
