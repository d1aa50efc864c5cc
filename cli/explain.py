"""prefdata explain: why a response was chosen, rejected or left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefdata.errors import UsageError
from prefdata.ids import pair_id
from prefdata.printable import printable, printable_lines

from . import output
from .options import RunArgument, option

if TYPE_CHECKING:
    import polars as pl

    from prefdata.explore.explain import Explanation
    from prefdata.explore.explain_candidate import CandidateExplanation
    from prefdata.pairs.explain import PairExplanation
    from prefdata.storage.run import Lineage, Run

EXAMPLE = "Example: prefdata explain runs/demo 0f3a"


def explain(
    run: RunArgument,
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIR_ID | CANDIDATE_ID [CANDIDATE_ID]",
            help="The id of a pair or of a candidate, or two candidates' ids. The first letters of an id are enough.",
        ),
    ],
    pairing: Annotated[
        str | None,
        option("--pairing", help="Which pairs to look at, where several pairings hold them."),
    ] = None,
) -> None:
    """Show why a response was chosen, rejected or left out.

    For a pair: prompt, texts, scores, seeds, models, steps. For a candidate: its scores, its rank among the prompt's
    candidates, each selection and pair that it is in, or the reason why not. For two candidates: the pair that they
    are, or the reason why they are not one.
    """
    from prefdata.storage.run import Run

    if len(ids) > 2:
        raise UsageError("explain takes the id of a pair or of a candidate, or the ids of two candidates.")
    explained = _one(Run(run), ids[0], pairing) if len(ids) == 1 else _two(Run(run), ids[0], ids[1], pairing)
    for line in explained:
        output.line(line)


def _one(run: Run, an_id: str, pairing: str | None) -> list[str]:
    from prefdata.explore.explain import explain, is_pair
    from prefdata.explore.explain_candidate import explain_candidate
    from prefdata.explore.run_rows import is_candidate

    if not is_candidate(run, an_id):
        return _lines(explain(run, an_id, pairing))
    if is_pair(run, an_id):
        raise UsageError(f"a pair and a candidate begin with {an_id!r}. Give more of the id.")
    if pairing is not None:
        raise UsageError(f"{an_id!r} is a candidate; --pairing goes with a pair or with two candidates.")
    return _of_candidate(explain_candidate(run, an_id))


def _two(run: Run, first: str, second: str, pairing: str | None) -> list[str]:
    from prefdata.explore.explain import explain
    from prefdata.pairs.explain import explain_pair

    found = explain_pair(run, first, second, pairing)
    if found.reason is not None:
        return _missing(found, run)
    return _lines(explain(run, pair_id(found.chosen_id, found.rejected_id), found.pairing))


REASONS = {
    "not_scored": "was not scored",
    "not_compared": "was never compared",
    "no_score": "has no score",
    "where": "does not fit --where",
    "refusal": "is a refusal",
    "too_short": "is shorter than --min-chars",
    "too_long": "is longer than --max-chars",
    "empty": "is empty",
    "truncated": "was truncated by --max-tokens",
    "earlier_round": "is of an earlier round",
    "other_sampler": "is of another sampler than the one that --quota assigned to its prompt",
    "duplicate": "has the same text as another candidate, which represents both",
    "passed_over": "was eligible and not kept by the method",
}
"""Why a candidate is excluded."""

NO_PAIR = {
    "same_text": "both have the same text",
    "tie": "both score the same: a tie is not a preference",
    "no_score": "one of them has no score",
    "best_was_truncated": "the better one is truncated and may only be rejected",
    "chosen_truncated": "the chosen one is truncated and may only be rejected",
    "margin": "their margin is below --min-margin",
    "max_margin": "their margin is above --max-margin",
    "per_prompt_limit": "the prompt has --max-pairs-per-prompt better pairs",
    "per_candidate_limit": "one of them is in --max-per-candidate better pairs",
    "unsure": "the label's probability is below --min-probability",
    "balance": "it was left out at random, to balance sources",
    "not_proposed": "the strategy does not propose them",
    "changed": "the pairs were made before they could be one: run the same `prefdata pair` again",
}
"""Why two eligible candidates are not a pair."""

BY_VERDICT = {
    "tie": "the verdicts are a tie, which is not a preference",
    "no_verdict": "they were compared, without a verdict",
    "not_proposed": "they were not compared with each other",
}
"""The same where verdicts decide, not scores."""


def _missing(found: PairExplanation, run: Run) -> list[str]:
    margin = "" if found.margin is None else f" (margin {output.number(found.margin)})"
    lines = [f"no pair of {found.pairing} (strategy {found.strategy}), prompt {found.prompt_id}", ""]
    verdicts = _verdicts(run, found)
    if not found.absent:
        message = {**NO_PAIR, **(BY_VERDICT if verdicts else {})}.get(str(found.reason), str(found.reason))
        return [*lines, f"{found.chosen_id} and {found.rejected_id}: {message}{margin}", *verdicts]
    return [*lines, *(f"{one} {_absence(found, one, run)}" for one in found.absent), *verdicts]


def _verdicts(run: Run, found: PairExplanation) -> list[str]:
    from prefdata.explore.explain import verdicts_of

    lineage = run.partition("pairs", found.pairing).lineage()
    assert lineage is not None, "an explained pairing was made"
    return _verdict_lines(verdicts_of(run, lineage, found.chosen_id, found.rejected_id))


def _verdict_lines(verdicts: pl.DataFrame) -> list[str]:
    """Return a line per judgment of the two candidates."""
    if not verdicts.height:
        return []
    return ["", "judgments:", *(_verdict(row) for row in verdicts.iter_rows(named=True))]


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
    """Why one of the two is excluded; where it was not selected, why not."""
    why = found.absent[candidate_id]
    if why != "not_selected":
        return REASONS.get(why, why)
    from prefdata.selections.explain import explain_selection

    selector = found.source.split("/", 1)[1]
    reason = explain_selection(run, selector, found.prompt_id).get(candidate_id) or "not_scored"
    return f"was not selected by {selector}: it {REASONS.get(reason, reason)}"


def _lines(explained: Explanation) -> list[str]:
    pair = explained.pair
    lines = [f"pair {pair['pair_id']} of {pair['pairing']}", "", *_prompt(explained.prompt)]
    for side, candidate in (("chosen", explained.chosen), ("rejected", explained.rejected)):
        lines += ["", *_candidate(side, candidate, pair[f"{side}_score"])]
    why = _why(pair, trusted=bool(explained.lineages[0][1].spec.get("trust_reference")))
    lines += [
        "",
        f"why: {why} (probability {pair['probability']:.3f} that the label is right, weight {pair['weight']:g})",
    ]
    lines += _verdict_lines(explained.verdicts)
    if explained.standing.height:
        lines += ["", f"all {explained.standing.height} scored candidates of this prompt, best first:"]
    selected = explained.standing["selected"].count() > 0
    lines += [_standing(row, pair, selected=selected) for row in explained.standing.iter_rows(named=True)]
    return [*lines, *_made_by(explained.lineages)]


def _of_candidate(explained: CandidateExplanation) -> list[str]:
    lines = [*_candidate("candidate", explained.candidate, None), "", *_prompt(explained.prompt), "", "scores:"]
    lines += [_score(row) for row in explained.scores.iter_rows(named=True)] or ["  none"]
    if explained.selections:
        lines += ["", "selections:"]
    for selector, (rank, reason) in explained.selections.items():
        lines.append(
            f"  {selector}: selected, rank {rank}"
            if rank is not None
            else f"  {selector}: not selected, it {REASONS.get(str(reason), reason)}"
        )
    lines += ["", "pairs:"]
    lines += [_pair(row) for row in explained.pairs.iter_rows(named=True)] or ["  none"]
    return [*lines, *_made_by(explained.lineages)]


def _score(row: dict[str, Any]) -> str:
    if row["score"] is None:
        return f"  {row['scorer']}: none"
    return f"  {row['scorer']}: {output.number(row['score'])}, rank {row['rank']} of {row['scored']} of this prompt"


def _pair(row: dict[str, Any]) -> str:
    margin = "" if row["margin"] is None else f", margin {output.number(row['margin'])}"
    tie = ", a tie" if row["verdict"] == "tie" else ""
    over = "over" if row["side"] == "chosen" else "beside"
    return f"  {row['pairing']} {row['pair_id']}: {row['side']} {over} {row['other_id']}{margin}{tie}"


def _prompt(prompt: dict[str, Any]) -> list[str]:
    lines = [f"prompt {prompt['prompt_id']} ({prompt['split']})"]
    return lines + [line for message in prompt["messages"] for line in _message(message, "  ")]


def _message(message: dict[str, Any], indent: str) -> list[str]:
    return _text(message["content"] or "", indent, f"{message['role']}: ")


def _text(text: str, indent: str, label: str = "") -> list[str]:
    """Indent a text's lines; its line breaks are kept, other control characters are escaped."""
    return [f"{indent}{line}" for line in f"{label}{printable_lines(text)}".split("\n")]


def _made_by(lineages: list[tuple[str, Lineage]]) -> list[str]:
    from prefdata.specs.non_default import non_default_settings

    lines = ["", "made by:"]
    for name, lineage in lineages:
        settings = non_default_settings(lineage.step, lineage.spec)
        given = ", ".join(f"{key}={value}" for key, value in settings.items())
        lines.append(
            f"  {name}: {lineage.step} ({'; '.join(part for part in (given, lineage.versions_text()) if part)})"
        )
    return lines


def _candidate(side: str, row: dict[str, Any], score: float | None) -> list[str]:
    revision = f" @ {row['model_revision']}" if row["model_revision"] else ""
    # What is unknown of an imported response is left out.
    facts = {
        "sample {}": row["sample_index"],
        "seed {}": row["seed"],
        "temperature {:g}": row["temperature"],
        "{} tokens": row["completion_tokens"],
        "finish reason {}": row["finish_reason"],
        "log-probability {:.4g} nats": row["logprob_sum"],
    }
    known = ", ".join(fact.format(value) for fact, value in facts.items() if value is not None)
    sampled = [line for message in row["sampled_messages"] or () for line in _message(message, "    ")]
    return [
        f"{side} {row['candidate_id']}" + ("" if score is None else f"  score {output.number(score)}"),
        *_text(row["text"] or "", "  "),
        f"  by {row['sampler']} ({row['model']}{revision}, {row['engine']}), {known}",
        *(["  sampled from these messages, not from the prompt:", *sampled] if sampled else []),
    ]


def _why(pair: dict[str, Any], *, trusted: bool) -> str:
    if trusted:
        return f"the chosen one is by {pair['scorer']}, the trusted reference"
    if pair["verdict"] == "tie":
        return f"{pair['scorer']} prefers neither; it is kept as a tie"
    if pair["margin"] is None:
        return f"{pair['scorer']} prefers the chosen one"
    return f"{pair['scorer']} scores the chosen one {output.number(pair['margin'])} higher"


def _standing(row: dict[str, Any], pair: dict[str, Any], *, selected: bool) -> str:
    mark = {pair["chosen_id"]: "chosen", pair["rejected_id"]: "rejected"}.get(row["candidate_id"], "")
    place = f"selected {row['selected']}" if row["selected"] is not None else "not selected" if selected else ""
    score = "none" if row["score"] is None else f"{row['score']:.4f}"
    text = printable(row["text"] or "")
    return f"  {score:>9}  {place:<12}  {mark:<8}  {text[:70]}{'…' if len(text) > 70 else ''}"
