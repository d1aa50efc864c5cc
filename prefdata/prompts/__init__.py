"""ingest: rows of any layout in, prompts out, and with them the answers that exist already.

A prompt is a conversation that waits for an answer: at most one system message, which comes first, then user and
assistant in turn (tool results may follow an assistant's message), the user last, and no message empty. What breaks a
rule is a bad row, told with its file and number; it is never mended by guessing. The texts themselves are left as they
are, byte for byte, with one exception: a lone surrogate (half an emoji, which UTF-8 and so Parquet and every tokenizer
refuse) becomes U+FFFD, and the rows concerned are counted.

Answers become candidates of samplers that are called by the source and their kind: `films-chosen`, `films-response`;
the numbers beside them, in columns that are named, scores by scorers that are called by the source and the column.
An instruction for Ghost Attention is part of the prompt that it is put into.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace as replaced
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from prefdata import ids
from prefdata.errors import BadRow, BadRows, InputError, UsageError
from prefdata.formats.answers import KNOWN, AnsweredRow, Gathered, apart
from prefdata.formats.layouts import Layout, Prompt, Unusable, detect, named
from prefdata.formats.readers import RawRow, read
from prefdata.prompts.answered import Derived, answered, forget, told
from prefdata.reports import Report, nonzero
from prefdata.specs import IngestSpec
from prefdata.store import Lineage, Outcome, Run, name_of
from prefdata.tables import PROMPTS, SCORES, rows_id, trimmed
from prefdata.transforms import INSTRUCTION, Instructions, train_view
from prefdata.views import candidate_files

LOOKED_AT = 20
"""Good rows of each file that its layout is detected from."""

_BAD_HINT = "Nothing was written; mend them, or leave them out with --on-bad-rows drop."
_TWICE_HINT = "Duplicates were to be refused and nothing was written; --on-duplicates merge makes one prompt of each."

_AFTER: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def ingest(run: Run, files: Sequence[str], spec: IngestSpec, *, replace: bool = False) -> Outcome:
    """Read prompts from files, folders or hub datasets, and store them as `RUN/prompts/source=NAME`.

    As candidates their answers are stored as well, as `RUN/candidates/sampler=NAME-KIND`, and the scores beside them as
    `RUN/scores/scorer=NAME-COLUMN`. The content is part of what the source is: other prompts or answers under the same
    name are refused unless `replace`.

    Raises:
        UsageError: the spec is for comparisons.
        InputError: a file is missing, empty or of an unknown kind or layout, or has no answers where some are wanted;
            BadRows tells every row by its place.
        SpecConflict: a source of this name holds other prompts or answers, or was made with other settings.
    """
    if spec.kind == "comparisons":
        raise UsageError("comparisons are no prompts: prefdata.ingest reads either.")
    partition = run.partition("prompts", spec.source or name_of(Path(files[0]).stem))
    began = time.monotonic()
    instructions = Instructions.of(spec.instructions) if spec.instructions is not None else None
    gathered = Gathered([column for _, column in spec.score_columns]) if spec.kind == "candidates" else None
    table, report = canonical(
        chain.from_iterable(read(file) for file in files),
        layout=spec.layout,
        split_test=spec.test,
        seed=spec.seed,
        on_duplicates=spec.on_duplicates,
        on_bad_rows=spec.on_bad_rows,
        system=spec.system,
        instructions=instructions,
        gathered=gathered,
    )
    resolved: dict[str, Any] = {"prompts": _content(table)}
    if instructions is not None:
        resolved["instructions"] = instructions.identity
    if gathered is not None and not gathered.kinds:
        raise InputError(f"{files[0]}: no row holds an answer. Known are {KNOWN}. Without --as candidates prompts do.")
    beside: list[Derived] = []
    if gathered is not None:
        beside = answered(run, partition.name, gathered, spec)
        resolved["answers"] = {kind: gathered.content(kind) for kind in gathered.kinds}
        report = report.timed(0, **told(gathered, beside))
    report = report.timed(time.monotonic() - began)
    lineage = Lineage.of(spec, resolved=resolved)
    if not replace:
        for there, of in ((partition, lineage), *((there, of) for there, of, _ in beside)):
            there.check(of)
    stored = [partition.derive(lineage, lambda: (table, report), replace=replace)]
    for there, of, compute in beside:  # the samplers first, then the scores of their candidates
        seen = candidate_files(run) if there.table is SCORES else None
        stored.append(there.derive(of, compute, replace=replace, seen=seen))
    if replace and gathered is not None:
        forget(run, partition.name, beside)
    return next((replaced(stored[0], did=one.did) for one in stored if one.did != "kept"), stored[0])


def _content(table: pa.Table) -> str:
    """The id of a table of prompts; the ids of the prompts stand for their messages."""
    tags = pa.array([json.dumps(tags) for tags in table["tags"].to_pylist()], pa.string())
    plain = table.select(["prompt_id", "tools", "reference", "metadata", "split"])
    return rows_id(plain.append_column("tags", tags), "prompt_id")


def canonical(
    rows: Iterable[RawRow],
    *,
    layout: str | None = None,
    split_test: float = 0.1,
    seed: int = 0,
    on_duplicates: Literal["merge", "error"] = "merge",
    on_bad_rows: Literal["error", "drop"] = "error",
    system: str | None = None,
    instructions: Instructions | None = None,
    gathered: Gathered | None = None,
) -> tuple[pa.Table, Report]:
    """The prompts that `rows` hold, in the order of first appearance, and the account of every row.

    `layout` is a name from `LAYOUTS`, for all files, or None to detect each file's. `split_test` is the share of
    prompts that go to the test split, by a hash of `seed` and the prompt's id, where the rows do not say: adding or
    shuffling rows moves no prompt. `system` is the system message of conversations that have none. `instructions` has
    one for each conversation, drawn by `seed`. `gathered` takes the answers that the rows hold; the same prompt then
    is no duplicate, the same answer is.

    The same conversation twice is one prompt: the first one's metadata, the first reference and the first split that
    a row gives, all their tags; other metadata are counted.

    Raises:
        BadRows: rows that cannot be used (unless they are to be dropped, and some are left), or duplicates that were
            to be refused.
        InputError, UsageError: a file's layout is unknown or ambiguous, or `layout` does not fit it.
    """
    bad: list[tuple[str, BadRow]] = []
    twice: list[BadRow] = []
    figures: dict[str, Any] = {"layout": [], "lone_surrogates": 0, "split_conflicts": 0, "metadata_not_kept": 0}
    rows = rows if gathered is None else apart(rows, gathered.columns)
    usable = _usable(rows, layout, system, bad, figures, gathered)
    if instructions is not None:
        usable = _instructed(usable, instructions, seed, split_test, bad)
    found = _distinct(((row, _keyed(record)) for row, record in usable), twice, figures)
    if bad and (on_bad_rows == "error" or not found):
        raise BadRows([row for _, row in bad], hint=_BAD_HINT if found else "Nothing was written.")
    refused = twice if gathered is None else gathered.twice
    if refused and on_duplicates == "error":
        raise BadRows(refused, hint=_TWICE_HINT)
    for key, record in found.items():
        record["split"] = record["split"] or _split(key, seed, split_test)
    table = trimmed(PROMPTS.from_rows(list(found.values())))
    dropped = Counter(reason for reason, _ in bad) + Counter(
        {"duplicate" if gathered is None else "same_prompt": len(twice)}
    )
    splits = Counter(table["split"].to_pylist())
    figures["layout"] = ", ".join(figures["layout"])
    report = Report(
        step="ingest",
        unit="rows",
        rows_in=len(bad) + len(twice) + len(found),
        rows_out=len(found),
        dropped=nonzero(dropped),
        figures={name: value for name, value in figures.items() if value} | dict(sorted(splits.items())),
    )
    return table, report


def _usable(
    rows: Iterable[RawRow],
    layout: str | None,
    system: str | None,
    bad: list[tuple[str, BadRow]],
    figures: dict[str, Any],
    gathered: Gathered | None,
) -> Iterator[tuple[RawRow, dict[str, Any]]]:
    """Each row with the prompt that it holds, its answers gathered; the others go to `bad`."""
    for row, how in _with_layouts(rows, layout):
        if how is not None and how.name not in figures["layout"]:
            figures["layout"].append(how.name)
        try:
            record = _record(_prompt(row, how, system))
        except Unusable as error:
            bad.append((error.reason, BadRow(row.file, row.row, str(error))))
            continue
        mended = _mended(record)
        figures["lone_surrogates"] += mended != record
        if gathered is not None and isinstance(row, AnsweredRow):
            answers = [
                replaced(answer, text=_mended(answer.text), model=_mended(answer.model))
                for answer in row.all(mended["reference"])
            ]
            gathered.add(row, _keyed(mended)["prompt_id"], answers)
        yield row, mended


def _split(key: str, seed: int, share: float) -> str:
    return "test" if ids.unit_uniform(seed, "split", key) < share else "train"


def _keyed(record: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_id": ids.prompt_id(record["messages"], record["tools"]), **record}


def _instructed(
    usable: Iterable[tuple[RawRow, dict[str, Any]]],
    instructions: Instructions,
    seed: int,
    split_test: float,
    bad: list[tuple[str, BadRow]],
) -> Iterator[tuple[RawRow, dict[str, Any]]]:
    """Each prompt with an instruction in its first user turn, as its metadata tell.

    A reference answer, which does not heed the instruction, goes to the metadata too.
    """
    for row, record in usable:
        metadata = json.loads(record["metadata"] or "{}")
        if INSTRUCTION in metadata:
            said = "its metadata hold an instruction already; rename that column, or ingest it without --instructions"
            bad.append(("instructed", BadRow(row.file, row.row, said)))
            continue
        key = ids.prompt_id(record["messages"], record["tools"])
        instruction = instructions.draw(seed, key)
        metadata[INSTRUCTION] = instruction
        if record["reference"] is not None:
            metadata[INSTRUCTION] = {**instruction, "reference_without": record["reference"]}
        changed = {
            "messages": train_view(record["messages"], instruction),
            "reference": None,
            # With an instruction or without, a conversation is in the same split.
            "split": record["split"] or _split(key, seed, split_test),
        }
        yield row, {**record, **changed, "metadata": json.dumps(metadata, ensure_ascii=False)}


def _with_layouts(rows: Iterable[RawRow], layout: str | None) -> Iterator[tuple[RawRow, Layout | None]]:
    """Each row with its file's layout; None where no row of the file can be read."""
    for file, of_file in groupby(rows, key=lambda row: row.file):
        first: list[RawRow] = []
        good: list[RawRow] = []
        for row in of_file:
            first.append(row)
            good += [] if row.problem else [row]
            if len(good) == LOOKED_AT:
                break
        looked_at = [row.values for row in good]
        how = None
        if looked_at:
            how = named(layout, looked_at, file) if layout else detect(looked_at, file)
        for row in chain(first, of_file):
            yield row, how


def _prompt(row: RawRow, layout: Layout | None, system: str | None) -> Prompt:
    """The prompt that a row holds, held against the rules.

    Raises:
        Unusable: there is none, or it breaks a rule.
    """
    if row.problem or layout is None:
        raise Unusable(row.reason, row.problem or "broken")
    prompt = layout.prompt(row.values)
    if system and prompt.messages and prompt.messages[0]["role"] != "system":
        prompt.messages.insert(0, {"role": "system", "content": system})
    check(prompt.messages)
    return prompt


def check(messages: Sequence[ids.Message]) -> None:
    """Hold a conversation that waits for an answer against the rules above.

    Raises:
        Unusable: it breaks one.
    """
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise Unusable("no_user_turn", "there is no user message")
    for number, (before, role) in enumerate(zip([None, *roles], roles, strict=False), 1):
        if role not in _AFTER[before]:
            after = f"after {before}" if before else "first"
            raise Unusable("roles_out_of_order", f"message {number} is {role}, {after}; expected {_either(before)}")
    if roles[-1] != "user":
        raise Unusable("no_user_last", f"the last message is {roles[-1]}'s, it should be the user's")
    for number, message in enumerate(messages, 1):
        if not message["content"].strip():
            raise Unusable("empty_content", f"message {number} ({message['role']}) is empty")


def _either(before: str | None) -> str:
    return " or ".join(_AFTER[before])


def _record(prompt: Prompt) -> dict[str, Any]:
    return {
        "messages": prompt.messages,
        "tools": prompt.tools,
        "reference": prompt.reference,
        "tags": prompt.tags,
        "metadata": prompt.metadata,
        "split": prompt.split,
    }


def _mended(value: Any) -> Any:
    """`value` with every lone surrogate replaced; two halves that belong together become their character."""
    if isinstance(value, str):
        return value if _is_utf8(value) else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    return {key: _mended(item) for key, item in value.items()} if isinstance(value, dict) else value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _distinct(
    usable: Iterable[tuple[RawRow, dict[str, Any]]], twice: list[BadRow], figures: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """One record a prompt, by id, in the order of first appearance; the rows merged into it go to `twice`."""
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for row, record in usable:
        key = record["prompt_id"]
        first = found.setdefault(key, record)
        if first is record:
            places[key] = f"{row.file}:{row.row}"
            continue
        twice.append(BadRow(row.file, row.row, f"the same prompt as {places[key]}"))
        figures["metadata_not_kept"] += record["metadata"] not in (None, first["metadata"])
        figures["split_conflicts"] += bool(first["split"] and record["split"] and first["split"] != record["split"])
        for name in ("reference", "split"):
            first[name] = first[name] or record[name]
        first["tags"] = list(dict.fromkeys([*first["tags"], *record["tags"]]))
    return found
