"""A Python function of the user's as a scorer: `FILE.py:NAME`, called as f(messages, response).

It returns a number, None where it gives no score, or a dict with `score` and other keys, which are stored as details.
What it raises, and what is not a finite number, becomes a null with a reason. It runs in a process of its own
(`workers`), so that one that ends its process or crashes costs one response, and what it prints goes to standard error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from prefdata import ids
from prefdata.errors import InputError, did_you_mean
from prefdata.scorers.protocol import Score, ScoringItem
from prefdata.scorers.rules.subprocess_pool import SubprocessPool

LONGEST_CALL = 3600.0
"""Seconds after which a call is ended."""

LARGEST_DETAILS = 1 << 20
"""Characters of a response's details as JSON, and values in them."""

DEEPEST_DETAILS = 64
"""Lists and objects in one another."""

LONGEST_WORDS = 1000
"""Characters of an exception's message that are kept."""


class FunctionScorer:
    """A Scorer on a function; see `prefdata.scorers.protocol.Scorer`."""

    outputs: tuple[str, ...] = ("",)

    def __init__(self, named: str) -> None:
        """Load the function `FILE.py:NAME`.

        Raises:
            InputError: there is no such file or function, or the file cannot be imported.
            EngineError: importing the file ends the process.
        """
        self.versions = {"python": ".".join(map(str, sys.version_info[:3]))}
        file_and_name(named)
        self._workers = SubprocessPool(f"{__name__}:function_rule", named, limit=LONGEST_CALL, count=1)
        self._workers.start()

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item, in order; see the protocol. The text's hash is that of the response alone."""
        return self._workers.score(items)

    def close(self) -> None:
        """End the process."""
        self._workers.close()


def function_rule(named: str) -> Callable[[ScoringItem], Score]:
    """Return a rule from a user's f(messages, response): a number, True or False, None, or a dict with `score`."""
    return partial(_judged, load_function(named))


def combination_rule(named: str) -> Callable[[ScoringItem], Score]:
    """Return a rule from a user's f(scores): the response holds the scores by their names, as JSON."""
    function = load_function(named)
    return lambda item: judged(item, lambda: function(json.loads(item.response)))


def _judged(function: Callable[..., Any], item: ScoringItem) -> Score:
    return judged(item, lambda: function([dict(message) for message in item.messages], item.response))


def judged(item: ScoringItem, call: Callable[[], Any]) -> Score:
    """Call a user's code on an item; meant for a process of its own, in which nothing else can be lost."""
    try:
        score, reason, details = _said(call())
    except BaseException as error:  # user code may raise anything: SystemExit, CancelledError, KeyboardInterrupt
        score, reason, details = None, storable(type(error).__name__), {"error": words_of(error)}
    return Score(item.key, score, reason, ids.text_hash(item.response), details)


def _said(returned: Any) -> tuple[float | None, str | None, dict[str, Any] | None]:
    details = None
    if isinstance(returned, dict):
        details = {str(key): value for key, value in returned.items() if key != "score"} or None
        returned = returned.get("score")
    score, reason = number_of(returned)
    if reason == "not_a_number" and details is None:
        details = {"returned": storable(repr(returned)[:200])}
    problem = _unfit(details)
    return (None, problem, None) if problem else (score, reason, details)


def words_of(error: BaseException) -> str:
    """Return an exception's message, truncated to what is stored; reading it may itself fail."""
    try:
        return storable(str(error))
    except BaseException:
        return "its message cannot be shown"


def storable(text: str) -> str:
    """Truncate a text to what is stored of a message, without halves of surrogate pairs."""
    return text[:LONGEST_WORDS].encode("utf-8", "backslashreplace").decode()


def file_and_name(named: str) -> tuple[Path, str]:
    """Split `FILE.py:NAME` into the file and the function's name.

    Raises:
        InputError: there is no such file, or no function is named.
    """
    file, _, name = named.rpartition(":")
    if not file and Path(named).is_file():
        raise InputError(f"{named} is a file, and its function is not named. Name the function as FILE.py:NAME.")
    if not Path(file).is_file():
        raise InputError(f"there is no file {file or named}. Name the function as FILE.py:NAME.")
    return Path(file), name


def function_identity(named: str) -> str:
    """Return the id of a function `FILE.py:NAME`: its name and its file's content.

    Raises:
        InputError: there is no such file.
    """
    file, name = file_and_name(named)
    return f"{name} of {file_identity(file)}"


def file_identity(file: str | Path) -> str:
    """Return the id of a file's content.

    Raises:
        InputError: there is no such file.
    """
    if not Path(file).is_file():
        raise InputError(f"there is no file {file}.")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[: ids.ID_DIGITS]


def load_function(named: str) -> Callable[..., Any]:
    """Load the function `FILE.py:NAME`; its file's folder is importable meanwhile.

    Raises:
        InputError: there is no such file or function, or the file cannot be imported.
    """
    path, name = file_and_name(named)
    file = str(path)
    spec = importlib.util.spec_from_file_location(f"_prefdata_function_{ids.text_hash(str(path.resolve()))}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is not a Python file. Name the function as FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # a process of its own imports it: see `judged`
        raise InputError(f"{file} cannot be imported: {type(error).__name__}: {words_of(error)}.") from None
    finally:
        sys.path.remove(str(path.resolve().parent))
    functions = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
    function: Callable[..., Any] | None = vars(module).get(name)
    if not callable(function):
        raise InputError(f"{file} has no function {name!r}.{did_you_mean(name, functions)}")
    return function


def number_of(returned: Any) -> tuple[float | None, str | None]:
    """Return the finite number that a function returned, or None and the reason why it is not one."""
    if returned is None:
        return None, "none"
    if not hasattr(returned, "__float__"):
        return None, "not_a_number"
    try:
        value = float(returned)
    except OverflowError:
        return None, "overflow"
    except Exception:  # an array of several numbers, a tensor on a lost device: whatever a library's __float__ raises
        return None, "not_a_number"
    if math.isnan(value):
        return None, "nan"
    return (None, "infinite") if math.isinf(value) else (value, None)


def _unfit(details: dict[str, Any] | None) -> str | None:
    """Why details cannot be stored: JSON has no NaN, no objects of Python's and no halves of surrogate pairs."""
    waiting: list[tuple[Any, int]] = [(details, 0)]
    for number, (value, depth) in enumerate(waiting):  # which grows as it is read
        if depth > DEEPEST_DETAILS:
            return "details_too_deep"
        if number > LARGEST_DETAILS:
            return "details_too_large"
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        waiting.extend((one, depth + 1) for one in inside)
    try:
        text = json.dumps(details, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError):
        return "details_not_json"
    return "details_too_large" if len(text) > LARGEST_DETAILS else None
