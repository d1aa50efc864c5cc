"""Pools by hand, in a line a prompt; and pairs by the names of their answers."""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from prefdata import ids
from prefdata.pairs.pair import make_pairs
from prefdata.specs import PairSpec
from prefdata.storage.report import nonzero

_ANSWER = re.compile(
    r"(?P<score>-?[\d.]+|\?)(?P<flags>[ce]*)(=(?P<text>\w+))?(/(?P<chars>\d+))?(@(?P<sampler>\w+))?(!(?P<out>\w+))?"
)
SCHEMA = {
    "candidate_id": pl.String,
    "prompt_id": pl.String,
    "sampler": pl.String,
    "sample_index": pl.Int32,
    "score": pl.Float64,
    "finish_reason": pl.String,
    "text_key": pl.UInt64,
    "chars": pl.UInt32,
    "excluded": pl.String,
    "name": pl.String,
}


def pool(*prompts: str, first: int = 0) -> pl.DataFrame:
    """A pool; "5 3c 2e 1=x 4/20@hot ?!no_score" are six answers to one prompt, in the order of generation.

    A number is a score, `c` is cut off, `e` empty, `=x` a text, `/20` its length, `@hot` the sampler, `!why` why it is
    left out. The answers of the first prompt are called 0a, 0b, …, those of the second 1a, ….
    """
    rows = [_row(p, i, answer) for p, line in enumerate(prompts, first) for i, answer in enumerate(line.split())]
    return pl.DataFrame(rows, schema=SCHEMA)


def _row(prompt: int, index: int, answer: str) -> dict[str, Any]:
    said = _ANSWER.fullmatch(answer)
    assert said, answer
    name = f"{prompt}{chr(ord('a') + index)}"
    return {
        "candidate_id": ids.digest(name),
        "prompt_id": ids.digest(f"prompt {prompt}"),
        "sampler": said["sampler"] or "policy",
        "sample_index": index,
        "score": None if said["score"] == "?" else float(said["score"]),
        "finish_reason": "length" if "c" in said["flags"] else "stop",
        "text_key": ids.seed(0, said["text"] or name),
        "chars": 0 if "e" in said["flags"] else int(said["chars"] or 10),
        "excluded": said["out"],
        "name": name,
    }


def paired(
    answers: pl.DataFrame, strategy: str, said: pl.DataFrame | None = None, **asked: Any
) -> tuple[str, dict[str, int]]:
    """The pairs as "0a>0b 1c>1a", prompts in the order of their numbers, and what was dropped."""
    rows, account = make_pairs(answers, PairSpec(strategy=strategy, **asked), said)  # type: ignore[arg-type]
    account.report("pair", "pairs")  # refuses what does not add up
    return named(answers, rows), nonzero(account.dropped)


def named(answers: pl.DataFrame, rows: pl.DataFrame) -> str:
    """Pairs by the names of their answers; each prompt's stay in their order."""
    name = dict(zip(answers["candidate_id"], answers["name"], strict=True))
    both = [f"{name[c]}>{name[r]}" for c, r in rows.select("chosen_id", "rejected_id").rows()]
    return " ".join(sorted(both, key=lambda pair: int(re.match(r"\d+", pair)[0])))  # type: ignore[index]
