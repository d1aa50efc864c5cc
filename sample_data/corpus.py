"""The sample corpus: prompts, demonstrations and preferences, drawn from one seed, byte for byte.

Every row has its own random stream, named by the seed, the file and the prompt's number, so that a change in one file
moves no row of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from .grammar import Request, draw_answer, draw_request
from .world import Wishes, true_reward

SEED = 1
TRAIN_PROMPTS = 500
TEST_PROMPTS = 150
DEMONSTRATIONS_PER_PROMPT = 16
COMPARISONS_PER_PROMPT = {"preferences": 20, "heldout_preferences": 8}
RATED_PROMPTS = 40
FLIPPED = 0.1
"""The share of preferences in `preferences.jsonl` that name the worse answer as the better."""
TIE_MARGIN = 1.0
"""Answers whose true rewards are nearer than this are a tie to the annotator."""

TIES_KEPT = 8
"""Of so many ties one is shipped; they are examples, and nothing is trained on them."""

Row = dict[str, Any]
Comparison = tuple[Request, str, str]


def corpus(seed: int = SEED) -> dict[str, list[Row]]:
    """All data files by name, as rows. Train and test share no combination of wishes, hence no prompt."""
    train, test = draw_prompts(seed)
    decided, ties = _split_ties(_comparisons(seed, "preferences", train))
    flipped = set(Random(f"{seed}/flips").sample(range(len(decided)), round(FLIPPED * len(decided))))
    heldout, _ = _split_ties(_comparisons(seed, "heldout_preferences", test))
    return {
        "prompts.jsonl": [_prompt_row(r, "train") for r in train] + [_prompt_row(r, "test") for r in test],
        "demonstrations.jsonl": list(_demonstrations(seed, train)),
        "preferences.jsonl": [_preference_row(*c, flip=i in flipped) for i, c in enumerate(decided)],
        "ties.jsonl": [{"prompt": list(r.messages), "responses": [a, b]} for r, a, b in ties[::TIES_KEPT]],
        "heldout_preferences.jsonl": [_preference_row(*c, flip=False) for c in heldout],
        "rated.jsonl": list(_rated(seed, test[:RATED_PROMPTS])),
    }


def write_corpus(folder: Path, seed: int = SEED) -> None:
    """Write the data files into `folder`, one JSON object a line."""
    for name, rows in corpus(seed).items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text("".join(lines), encoding="utf-8", newline="\n")


def draw_prompts(seed: int) -> tuple[list[Request], list[Request]]:
    """The requests of the train and the test split, each with wishes of its own."""
    rng, seen, requests = Random(f"{seed}/prompts"), set[Wishes](), list[Request]()
    while len(requests) < TRAIN_PROMPTS + TEST_PROMPTS:
        request = draw_request(rng)
        if request.wishes not in seen:
            seen.add(request.wishes)
            requests.append(request)
    return requests[:TRAIN_PROMPTS], requests[TRAIN_PROMPTS:]


def _demonstrations(seed: int, requests: Sequence[Request]) -> Iterator[Row]:
    for number, request in enumerate(requests):
        rng = Random(f"{seed}/demonstrations/{number}")
        for _ in range(DEMONSTRATIONS_PER_PROMPT):
            answer = draw_answer(rng, request.wishes)
            yield {"messages": [*request.messages, _assistant(answer)]}


def _rated(seed: int, requests: Sequence[Request]) -> Iterator[Row]:
    """Answers with the ratings that somebody gave, in the layout of such sets: the true reward, and how long it is."""
    for number, request in enumerate(requests):
        rng = Random(f"{seed}/rated/{number}")
        answers = [draw_answer(rng, request.wishes) for _ in range(4)]
        yield {
            "messages": list(request.messages),
            "completions": [
                {
                    "response": answer,
                    "overall_score": round(true_reward(request.messages, answer), 3),
                    "annotations": {"brevity": round(100 / len(answer), 3)},
                }
                for answer in answers
            ],
        }


def _comparisons(seed: int, name: str, requests: Sequence[Request]) -> Iterator[Comparison]:
    """Two different answers to a request, as they were drawn."""
    for number, request in enumerate(requests):
        rng = Random(f"{seed}/{name}/{number}")
        for _ in range(COMPARISONS_PER_PROMPT[name]):
            first, second = draw_answer(rng, request.wishes), draw_answer(rng, request.wishes)
            if first != second:
                yield request, first, second


def _split_ties(comparisons: Iterator[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    decided: list[Comparison] = []
    ties: list[Comparison] = []
    for request, first, second in comparisons:
        margin = true_reward(request.messages, first) - true_reward(request.messages, second)
        (ties if abs(margin) < TIE_MARGIN else decided).append((request, first, second))
    return decided, ties


def _prompt_row(request: Request, split: str) -> Row:
    wish = request.wishes
    asked = {name: getattr(wish, name) for name in wish.__slots__ if getattr(wish, name) is not None}
    tags = [str(asked[name]) for name in ("genre", "tone") if name in asked]
    return {"messages": list(request.messages), "split": split, "tags": tags, "metadata": asked}


def _preference_row(request: Request, first: str, second: str, *, flip: bool) -> Row:
    """The pair in its true order, or against it; `true_margin` is below 0 where it was flipped."""
    better, worse = sorted((first, second), key=lambda answer: -true_reward(request.messages, answer))
    chosen, rejected = (worse, better) if flip else (better, worse)
    margin = true_reward(request.messages, chosen) - true_reward(request.messages, rejected)
    return {
        "prompt": list(request.messages),
        "chosen": [_assistant(chosen)],
        "rejected": [_assistant(rejected)],
        "true_margin": round(margin, 6),
    }


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
