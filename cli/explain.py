"""prefdata explain: why a pair is what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show

if TYPE_CHECKING:
    from prefdata.explore.explain import Explanation

EXAMPLE = "Example: prefdata explain runs/demo 0f3a"


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    pair_id: Annotated[str, typer.Argument(metavar="PAIR_ID", help="The pair's id, or the beginning of it.")],
) -> None:
    """Show why one answer was chosen and the other rejected: prompt, texts, scores, seeds, models, steps."""
    from prefdata.explore.explain import explain as explore
    from prefdata.store import Run

    for line in _lines(explore(Run(run), pair_id)):
        typer.echo(line)


def _lines(told: Explanation) -> list[str]:
    pair = told.pair
    lines = [f"pair {pair['pair_id']} of {pair['pairing']}", "", f"prompt {pair['prompt_id']} ({told.prompt['split']})"]
    lines += [f"  {message['role']}: {show.printable(message['content'])}" for message in told.prompt["messages"]]
    for side, candidate in (("chosen", told.chosen), ("rejected", told.rejected)):
        lines += ["", *_candidate(side, candidate, pair[f"{side}_score"])]
    lines += [
        "",
        f"why: {pair['scorer']} scores the chosen one {show.number(pair['margin'])} higher "
        f"(probability {pair['probability']:.3f} that the label is right, weight {pair['weight']:g})",
        "",
        f"all {told.standing.height} scored answers to this prompt, best first:",
    ]
    lines += [_standing(row, pair) for row in told.standing.iter_rows(named=True)]
    lines += ["", "made by:"]
    for name, lineage in told.lineages:
        settings = ", ".join(f"{key}={value}" for key, value in lineage.spec.items() if value not in (None, [], False))
        lines.append(f"  {name}: {lineage.step} ({settings}; {lineage.versions_text()})")
    return lines


def _candidate(side: str, row: dict[str, Any], score: float | None) -> list[str]:
    revision = f" @ {row['model_revision']}" if row["model_revision"] else ""
    # What nobody knows of an answer that came from elsewhere is left out.
    facts = {
        "draw {}": row["sample_index"],
        "seed {}": row["seed"],
        "temperature {:g}": row["temperature"],
        "{} tokens": row["completion_tokens"],
        "ended by {}": row["finish_reason"],
        "log-probability {:.4g}": row["logprob_sum"],
    }
    known = ", ".join(said.format(value) for said, value in facts.items() if value is not None)
    seen = [f"    {m['role']}: {show.printable(m['content'])}" for m in row["sampled_messages"] or ()]
    return [
        f"{side} {row['candidate_id']}  score {show.number(score)}",
        f"  {show.printable(row['text'])}",
        f"  by {row['sampler']} ({row['model']}{revision}, {row['engine']}), {known}",
        *(["  who saw instead of the prompt:", *seen] if seen else []),
    ]


def _standing(row: dict[str, Any], pair: dict[str, Any]) -> str:
    mark = {pair["chosen_id"]: "chosen", pair["rejected_id"]: "rejected"}.get(row["candidate_id"], "")
    place = f"selected {row['selected']}" if row["selected"] is not None else "not selected"
    score = "none" if row["score"] is None else f"{row['score']:.4f}"
    text = show.printable(row["text"] or "")
    return f"  {score:>9}  {place:<12}  {mark:<8}  {text[:70]}{'…' if len(text) > 70 else ''}"
