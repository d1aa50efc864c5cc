"""Tables of responses to look at while training runs: `OUT/responses/step-000010.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefdata.train.ppo.rollout import Rollout, Row

SHOWN = 8
"""Responses of a table."""

CHARACTERS = 400
"""Most characters of a cell."""


def write_table(folder: Path, step: int, rollout: Rollout, prompt: Callable[[str], str]) -> Path:
    """Write the first responses of a step (from 1) with their scores.

    Args:
        folder: the model's folder.
        step: names the file; a step that is run again replaces it.
        rollout: the responses.
        prompt: gives the text of a prompt by its id.
    """
    lines = ["| prompt | response | score | tokens | finish |", "|---|---|---|---|---|"]
    for row, score in list(zip(rollout.rows, rollout.stored[""], strict=True))[:SHOWN]:
        cells = [_cell(prompt(row["prompt_id"])), _cell(row["text"] or ""), _score(score)]
        cells += [str(row.get("completion_tokens", 0)), str(row["finish_reason"])]
        lines.append(f"| {' | '.join(cells)} |")
    path = folder / "responses" / f"step-{step:06d}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    return path


def _score(row: Row) -> str:
    return str(row["reason"]) if row["score"] is None else f"{row['score']:.3f}"


def _cell(text: str) -> str:
    shown = text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
    return " ".join(shown.replace("|", "\\|").split())
