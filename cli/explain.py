"""prefdata explain: why a pair is what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefdata.errors import UsageError
from prefdata.ids import pair_id
from prefdata.printable import printable

from . import show
from .options import RunArgument, option

if TYPE_CHECKING:
    import polars as pl

    from prefdata.explore.explain import Explanation
    from prefdata.pairs.explain import PairExplanation
    from prefdata.storage.run import Run

EXAMPLE = "Example: prefdata explain runs/demo 0f3a"


def explain(
    run: RunArgument,
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIR_ID | CANDIDATE_ID CANDIDATE_ID",
            help="A pair's id, or those of two answers that may be none; the beginnings will do.",
        ),
    ],
    pairing: Annotated[
        str | None,
        option(
            "--pairing", help="Which pairs, where several hold the pair or, for two answers, where there are several."
        ),
    ] = None,
) -> None:
    """Show why one answer was chosen and the other rejected, or why two answers are no pair.

    For a pair: prompt, texts, scores, seeds, models, steps. For two answers: what the pairing's rule makes of them.
    """
    from prefdata.explore.explain import explain as explore
    from prefdata.pairs.explain import explain_pair
    from prefdata.storage.run import Run

    if len(ids) > 2:
        raise UsageError("explain takes a pair's id, or the ids of two answers.")
    if len(ids) == 1:
        lines = _lines(explore(Run(run), ids[0], pairing))
    else:
        found = explain_pair(Run(run), ids[0], ids[1], pairing)
        if found.reason is None:
            lines = _lines(explore(Run(run), pair_id(found.chosen_id, found.rejected_id), found.pairing))
        else:
            lines = _missing(found, Run(run))
    for line in lines:
        show.line(line)


REASONS = {
    "not_scored": "was not scored",
    "not_compared": "was never compared",
    "no_score": "has no score",
    "where": "does not fit --where",
    "refusal": "is a refusal",
    "too_short": "is shorter than --min-chars",
    "too_long": "is longer than --max-chars",
    "empty": "is empty",
    "truncated": "was cut off by max_tokens",
    "earlier_round": "is of an earlier round",
    "other_sampler": "is of another sampler than the one that its prompt drew",
    "duplicate": "has the same text as another answer, which stands for it",
    "passed_over": "took part and was not kept by the method",
}
"""Why an answer takes no part."""

NO_PAIR = {
    "same_text": "both have the same text",
    "tie": "both score the same: a tie is no preference",
    "no_score": "one of them has no score",
    "best_was_truncated": "the better one was cut off and may only be rejected",
    "chosen_truncated": "the chosen one was cut off and may only be rejected",
    "margin": "their margin is below --min-margin",
    "max_margin": "their margin is above --max-margin",
    "per_prompt_limit": "the prompt has --max-pairs-per-prompt better pairs",
    "per_candidate_limit": "one of them is in --max-per-candidate better pairs",
    "unsure": "the label's probability is below --min-probability",
    "balance": "it was left out by lot, to balance sources",
    "not_proposed": "the strategy does not bring them together",
    "changed": "they were none when the pairs were made, and would be one now: run the same `prefdata pair` again",
}
"""Why two answers that take part are no pair."""

BY_VERDICT = {
    "tie": "the verdicts are a tie, which is no preference",
    "no_verdict": "they were compared, and no verdict could be had",
    "not_proposed": "they were not compared with each other",
}
"""The same where verdicts decide and not scores."""


def _missing(found: PairExplanation, run: Run) -> list[str]:
    margin = "" if found.margin is None else f" (margin {show.number(found.margin)})"
    lines = [f"no pair of {found.pairing} (strategy {found.strategy}), prompt {found.prompt_id}", ""]
    verdicts = _verdicts(run, found)
    if not found.absent:
        said = {**NO_PAIR, **(BY_VERDICT if verdicts else {})}.get(str(found.reason), str(found.reason))
        return [*lines, f"{found.chosen_id} and {found.rejected_id}: {said}{margin}", *verdicts]
    return [*lines, *(f"{one} {_absence(found, one, run)}" for one in found.absent), *verdicts]


def _verdicts(run: Run, found: PairExplanation) -> list[str]:
    from prefdata.explore.explain import verdicts_of

    lineage = run.partition("pairs", found.pairing).lineage()
    assert lineage is not None, "an explained pairing was made"
    return _said(verdicts_of(run, lineage, found.chosen_id, found.rejected_id))


def _said(verdicts: pl.DataFrame) -> list[str]:
    """What was said of two answers, a line a verdict."""
    if not verdicts.height:
        return []
    return ["", "what was said:", *(_verdict(row) for row in verdicts.iter_rows(named=True))]


def _verdict(row: dict[str, Any]) -> str:
    shown = [row["first_id"], row["second_id"]]
    better = {"first": shown[0], "second": shown[1]}.get(row["verdict"])
    if row["order"] == "second-first":
        shown.reverse()
    sure = "" if row["probability"] is None else f" ({row['probability']:.3f} that {row['first_id'][:8]} is better)"
    how = f", {row['strength']}" if row["strength"] else ""
    why = f": {printable(row['rationale'])}" if row["rationale"] else ""
    verdict = f"prefers {better[:8]}" if better else row["verdict"].replace("_", " ")
    return f"  {row['annotator']}, shown {shown[0][:8]} and then {shown[1][:8]}: {verdict}{how}{sure}{why}"


def _absence(found: PairExplanation, candidate_id: str, run: Run) -> str:
    """Why one of the two takes no part; where it was not selected, why not."""
    why = found.absent[candidate_id]
    if why != "not_selected":
        return REASONS.get(why, why)
    from prefdata.selections.explain import explain_selection

    selector = found.source.split("/", 1)[1]
    reason = explain_selection(run, selector, found.prompt_id).get(candidate_id) or "not_scored"
    return f"was not selected by {selector}: it {REASONS.get(reason, reason)}"


def _lines(told: Explanation) -> list[str]:
    pair = told.pair
    lines = [f"pair {pair['pair_id']} of {pair['pairing']}", "", f"prompt {pair['prompt_id']} ({told.prompt['split']})"]
    lines += [f"  {message['role']}: {printable(message['content'])}" for message in told.prompt["messages"]]
    for side, candidate in (("chosen", told.chosen), ("rejected", told.rejected)):
        lines += ["", *_candidate(side, candidate, pair[f"{side}_score"])]
    why = _why(pair, trusted=bool(told.lineages[0][1].spec.get("trust_reference")))
    lines += [
        "",
        f"why: {why} (probability {pair['probability']:.3f} that the label is right, weight {pair['weight']:g})",
    ]
    lines += _said(told.verdicts)
    if told.standing.height:
        lines += ["", f"all {told.standing.height} scored answers to this prompt, best first:"]
    selected = told.standing["selected"].count() > 0
    lines += [_standing(row, pair, selected=selected) for row in told.standing.iter_rows(named=True)]
    lines += ["", "made by:"]
    for name, lineage in told.lineages:
        settings = ", ".join(
            f"{key}={value}"
            for key, value in lineage.spec.items()
            if value is not None and value is not False and value != []
        )
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
    seen = [f"    {m['role']}: {printable(m['content'])}" for m in row["sampled_messages"] or ()]
    return [
        f"{side} {row['candidate_id']}" + ("" if score is None else f"  score {show.number(score)}"),
        f"  {printable(row['text'])}",
        f"  by {row['sampler']} ({row['model']}{revision}, {row['engine']}), {known}",
        *(["  who saw instead of the prompt:", *seen] if seen else []),
    ]


def _why(pair: dict[str, Any], *, trusted: bool) -> str:
    if trusted:
        return f"the chosen one is by {pair['scorer']}, the reference that is trusted"
    if pair["verdict"] == "tie":
        return f"{pair['scorer']} prefers neither; it is kept as a tie"
    if pair["margin"] is None:
        return f"{pair['scorer']} prefers the chosen one"
    return f"{pair['scorer']} scores the chosen one {show.number(pair['margin'])} higher"


def _standing(row: dict[str, Any], pair: dict[str, Any], *, selected: bool) -> str:
    mark = {pair["chosen_id"]: "chosen", pair["rejected_id"]: "rejected"}.get(row["candidate_id"], "")
    place = f"selected {row['selected']}" if row["selected"] is not None else "not selected" if selected else ""
    score = "none" if row["score"] is None else f"{row['score']:.4f}"
    text = printable(row["text"] or "")
    return f"  {score:>9}  {place:<12}  {mark:<8}  {text[:70]}{'…' if len(text) > 70 else ''}"
