"""ingest: rows of any layout in, prompts out.

A prompt is a conversation that waits for an answer: at most one system message, which comes first, then user and
assistant in turn (tool results may follow an assistant's message), the user last, and no message empty. What breaks a
rule is a bad row, told with its file and number; it is never mended by guessing. The texts themselves are left as they
are, byte for byte, with one exception: a lone surrogate (half an emoji, which UTF-8 and so Parquet and every tokenizer
refuse) becomes U+FFFD, and the rows concerned are counted.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from prefdata import ids
from prefdata.errors import BadRow, BadRows
from prefdata.formats.layouts import Layout, Prompt, Unusable, detect, named
from prefdata.formats.readers import RawRow, read
from prefdata.reports import Report, nonzero
from prefdata.specs import IngestSpec
from prefdata.store import Lineage, Outcome, Run, name_of
from prefdata.tables import PROMPTS, rows_id

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

    The prompts' content is part of what the source is: other prompts under the same name are refused unless `replace`.

    Raises:
        InputError: a file is missing, empty or of an unknown kind or layout; BadRows tells every row by its place.
        SpecConflict: a source of this name holds other prompts or was made with other settings.
    """
    partition = run.partition("prompts", spec.source or name_of(Path(files[0]).stem))
    began = time.monotonic()
    table, report = canonical(
        chain.from_iterable(read(file) for file in files),
        layout=spec.layout,
        split_test=spec.test,
        seed=spec.seed,
        on_duplicates=spec.on_duplicates,
        on_bad_rows=spec.on_bad_rows,
        system=spec.system,
    )
    report = report.timed(time.monotonic() - began)
    lineage = Lineage.of(spec, resolved={"prompts": _content(table)})
    return partition.derive(lineage, lambda: (table, report), replace=replace)


def _content(table: pa.Table) -> str:
    """The id of a table of prompts; the ids of the prompts stand for their messages."""
    tags = pa.array([json.dumps(tags) for tags in table["tags"].to_pylist()], pa.string())
    return rows_id(table.drop_columns(["messages", "tags"]).append_column("tags", tags), "prompt_id")


def canonical(
    rows: Iterable[RawRow],
    *,
    layout: str | None = None,
    split_test: float = 0.1,
    seed: int = 0,
    on_duplicates: Literal["merge", "error"] = "merge",
    on_bad_rows: Literal["error", "drop"] = "error",
    system: str | None = None,
) -> tuple[pa.Table, Report]:
    """The prompts that `rows` hold, in the order of first appearance, and the account of every row.

    `layout` is a name from `LAYOUTS`, for all files, or None to detect each file's. `split_test` is the share of
    prompts that go to the test split, by a hash of `seed` and the prompt's id, where the rows do not say: adding or
    shuffling rows moves no prompt. `system` is the system message of conversations that have none.

    The same conversation twice is one prompt: the first one's metadata, the first reference and the first split that
    a row gives, all their tags.

    Raises:
        BadRows: rows that cannot be used (unless they are to be dropped, and some are left), or duplicates that were
            to be refused.
        InputError, UsageError: a file's layout is unknown or ambiguous, or `layout` does not fit it.
    """
    bad: list[tuple[str, BadRow]] = []
    twice: list[BadRow] = []
    figures: dict[str, Any] = {"layout": [], "lone_surrogates": 0, "split_conflicts": 0}
    found = _distinct(_usable(rows, layout, system, bad, figures), twice, figures)
    if bad and (on_bad_rows == "error" or not found):
        raise BadRows([row for _, row in bad], hint=_BAD_HINT if found else "Nothing was written.")
    if twice and on_duplicates == "error":
        raise BadRows(twice, hint=_TWICE_HINT)
    for key, record in found.items():
        record["split"] = record["split"] or ("test" if ids.unit_uniform(seed, "split", key) < split_test else "train")
    table = PROMPTS.from_rows(list(found.values()))
    dropped = Counter(reason for reason, _ in bad) + Counter(duplicate=len(twice))
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
) -> Iterator[tuple[RawRow, dict[str, Any]]]:
    """Each row with the prompt that it holds; the others go to `bad`."""
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
        yield row, {"prompt_id": ids.prompt_id(mended["messages"], mended["tools"]), **mended}


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
        raise Unusable("broken", row.problem or "broken")
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
        figures["split_conflicts"] += bool(first["split"] and record["split"] and first["split"] != record["split"])
        for name in ("reference", "split"):
            first[name] = first[name] or record[name]
        first["tags"] = list(dict.fromkeys([*first["tags"], *record["tags"]]))
    return found
