"""Small data and settings for the trainers' tests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

WORDS = ("good", "bad", "fine", "film", "plot", "slow", "dull", "great", "nice", "long")


def conversation(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., list[dict[str, Any]]]:
    """`make_pairs(count, seed=0, chat=True)`: preferences of unequal lengths, all of them distinct."""

    def make(count: int, seed: int = 0, chat: bool = True) -> list[dict[str, Any]]:
        draw = random.Random(seed)
        rows = []
        for number in range(count):
            prompt = f"Review {number} " + " ".join(draw.choices(WORDS, k=draw.randint(0, 4)))
            chosen, rejected = (" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(2))
            rejected += "?"
            if chat:
                rows.append(
                    {
                        "prompt": conversation("user", prompt),
                        "chosen": conversation("assistant", chosen),
                        "rejected": conversation("assistant", rejected),
                    }
                )
            else:
                rows.append({"prompt": prompt + ": ", "chosen": chosen, "rejected": rejected})
        return rows

    return make


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, Sequence[Any]], Path]:
    """Write rows as JSON lines and return the path."""

    def write(path: Path, rows: Sequence[Any]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[Path], list[dict[str, float]]]:
    """The lines of a model folder's metrics.jsonl, without what the clock decides."""

    def read(folder: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "tokens/s"} for line in lines]

    return read
