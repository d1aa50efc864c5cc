"""Reading: files of any layout to records. Every command that takes data uses this module.

reader = Reader(["films.jsonl"])
for row, record in reader.records():
    ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, groupby, islice
from typing import Any, Literal

from prefdata.errors import InputError
from prefdata.formats import casts
from prefdata.formats.bad_rows import BadRowLog, OnBadRows
from prefdata.formats.dataset_info import layout_beside
from prefdata.formats.detection import detect
from prefdata.formats.files import RawRow
from prefdata.formats.joining import Join
from prefdata.formats.layout_maps import LayoutMap, VerdictMap, named_map
from prefdata.formats.layouts import Layout
from prefdata.formats.names import is_known, words
from prefdata.formats.paths import getter
from prefdata.formats.readers import read
from prefdata.formats.records import BadRowError, LeftOutError, Record
from prefdata.specs.base import Spec
from prefdata.specs.ingest import JUDGED, IngestKind

LOOKED_AT = 100
"""Number of readable rows from which a file's layout is found."""

OneMeans = Literal["first", "second"]
_CHOICE = {"id", "index", "idx", "choice", "winner", "best", "better", "preferred", "chosen", "selected"}
"""Words in names of columns that name a response by its number."""

_SOME_VALUES = 12


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Attributes:
        layout: a layout's name, file or mapping; default: detected.
        ignore: columns that are left out.
        one_means: the response that 1 means in verdicts of 0 and 1 (or positive numbers, in signed ones).
        verdict: the name of the verdict to read, if rows have several.
        join, on: other inputs whose columns are added to each row, and the key of each (`joining`).
        limit: maximum number of rows to read.
        on_bad_rows: what happens to rows that cannot be used.
        want: the kind of data that is needed; other files are refused, and verdicts are read only if needed.
    """

    layout: str | None = None
    ignore: tuple[str, ...] = ()
    one_means: OneMeans | None = None
    verdict: str | None = None
    join: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    limit: int | None = None
    on_bad_rows: OnBadRows = "error"
    want: IngestKind = "pairs"

    @classmethod
    def of(cls, spec: Spec, **more: Any) -> ReadOptions:
        """Copy the settings from a spec that has them; `more` takes precedence."""
        names = [field.name for field in fields(cls) if field.name in type(spec).model_fields]
        return cls(**{name: getattr(spec, name) for name in names} | more)


class Reader:
    """Reader of one or more inputs, in their order.

    Attributes:
        layouts: the layout of each file that was read.
        bad: the rows that cannot be used.
        left_out: counts of rows that their layout leaves out, by reason.
        notes: counts of content that was not kept, by name.
        kept: columns that became metadata, with the number of rows.
        not_kept: columns that are not needed for `want`, with the number of rows.
        surrogates: number of rows in which lone surrogates were replaced.
        rows: number of rows read.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        options: ReadOptions | None = None,
        *,
        read: Callable[[str], Iterator[RawRow]] = read,
    ) -> None:
        """Prepare to read inputs by name; `read` returns the rows of one, each time it is called."""
        self.inputs, self.options, self._read = list(inputs), options or ReadOptions(), read
        options = self.options
        self._joins = [Join(name, on, read) for name, on in zip(options.join, options.on, strict=True)]
        for join in self._joins:
            self._read = _joined(join, self._read)
        self._given = named_map(options.layout) if options.layout else None
        self.layouts: dict[str, LayoutMap] = {}
        self.bad = BadRowLog(options.on_bad_rows)
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.not_kept: Counter[str] = Counter()
        self.surrogates = self.rows = 0

    @property
    def dropped(self) -> Counter[str]:
        """Count the rows without a record, by reason."""
        return self.bad.reasons + self.left_out

    def records(self) -> Iterator[tuple[RawRow, Record]]:
        """Iterate over the usable rows, each with its record; the others go to `bad`.

        Raises:
            InputError: a file cannot be read, or its layout is unknown or ambiguous.
        """
        for name in self.inputs:
            rows = islice(self._read(name), None if self.options.limit is None else self.options.limit - self.rows)
            for file, of_file in groupby(rows, key=lambda row: row.file):
                yield from self._of_file(name, file, of_file)
            if self.options.limit is not None and self.rows >= self.options.limit:
                break
        for join in self._joins:
            self.not_kept += join.hidden

    def _of_file(self, name: str, file: str, rows: Iterator[RawRow]) -> Iterator[tuple[RawRow, Record]]:
        first = list(_until_good(rows))
        good = [row for row in first if row.problem is None]
        layout = self._layout(name, file, good) if good else None
        seen = {column for row in good for column in _filled(row)}
        for row in chain(first, rows):
            self.rows += 1
            if layout is not None and (new := _filled(row) - seen if row.values.keys() - seen else None):
                seen |= new
                if any(is_known(column) for column in new):
                    # A column that was empty in the first rows.
                    self._count(layout)
                    good.append(row)
                    layout = self._layout(name, file, good)
            try:
                if layout is None:
                    raise BadRowError(row.reason, row.problem or "broken")
                record = layout.record(row)
            except LeftOutError as left_out:
                self.left_out[str(left_out)] += 1
                continue
            except BadRowError as error:
                self.bad.add(row, error)
                continue
            self.surrogates += row.replaced
            yield row, record
        if layout is not None:
            self._count(layout)

    def _count(self, layout: Layout) -> None:
        self.notes += layout.notes
        self.kept += layout.kept
        self.not_kept += +layout.not_kept

    def _layout(self, name: str, file: str, rows: list[RawRow]) -> Layout:
        values = [row.values for row in rows]
        given = self._given or _beside(file, values)
        found = detect(values, file, given, self.options.ignore)
        refuse_without(found, self.options.want, file)
        if self.options.want in JUDGED:
            verdicts = _chosen(found, self.options.verdict, file)
            if any(one.cast == "numbers" for one in verdicts):
                verdicts = self._decided(name, file, found, verdicts)
            found = found.model_copy(update={"verdicts": verdicts})
        self.layouts[file] = found
        return Layout(found, self.options.ignore, self.options.want)

    def _decided(
        self, name: str, file: str, layout: LayoutMap, verdicts: tuple[VerdictMap, ...]
    ) -> tuple[VerdictMap, ...]:
        """Set the meaning of verdicts that are numbers, from the numbers of the whole file."""
        open_ = [one for one in verdicts if one.cast == "numbers"]
        seen: dict[str, set[float]] = {one.column[0]: set() for one in open_}
        getters = {column: getter(column) for column in seen}
        for row in self._read(name):
            if row.file == file and row.problem is None:
                for column, get in getters.items():
                    value = casts.as_json(get(row.values))
                    numbers = map(casts.number_of, value if isinstance(value, list) else [value])
                    seen[column].update(number for number in numbers if number is not None)
        together = set().union(*seen.values())  # all annotators use the same scale
        return tuple(
            one.model_copy(update={"cast": _cast(one, layout, together, self.options.one_means, file)})
            if one.cast == "numbers"
            else one
            for one in verdicts
        )


def _joined(join: Join, read: Callable[[str], Iterator[RawRow]]) -> Callable[[str], Iterator[RawRow]]:
    return lambda name: join.rows(read(name))


def _until_good(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Collect the rows from which the layout of a file is found."""
    good = 0
    for row in rows:
        yield row
        good += row.problem is None
        if good == LOOKED_AT:
            return


def _filled(row: RawRow) -> set[str]:
    """List the columns of a row that are not empty."""
    return {column for column, value in row.values.items() if value is not None and value not in ("", [])}


def _beside(file: str, rows: Sequence[Mapping[str, Any]]) -> LayoutMap | None:
    """Find the layout in a dataset_info.json next to the file, if the prompt's columns exist."""
    found = layout_beside(file)
    asked = (*found.prompt.turns, *found.prompt.text) if found is not None and found.prompt is not None else ()
    return found if any(row.get(column) is not None for row in rows for column in asked) else None


def holds(layout: LayoutMap) -> list[IngestKind]:
    """List what the rows of a layout can provide, besides prompts."""
    entries = layout.responses or ()
    kinds = {one.kind for one in entries}
    last = layout.prompt.last_turn if layout.prompt is not None and layout.prompt.turns else "prompt"
    kinds |= {"chosen"} if last == "chosen" else set()
    sides = {"chosen", "rejected"} <= kinds
    judged = bool(layout.verdicts) or any(one.rank or one.best_first for one in entries)
    judged |= bool(layout.probability) and not sides
    labelled = bool(layout.label) or any(one.label for one in entries)
    answered = bool(entries) or last != "prompt"
    found: list[IngestKind] = ["pairs", "comparisons"] if sides or judged else []
    found += ["unpaired"] if (labelled and answered) or sides else []
    return [*found, *(("candidates", "demonstrations") if answered or layout.references else ())]


def refuse_without(layout: LayoutMap, want: IngestKind, file: str) -> None:
    """Refuse a file whose rows cannot provide the data that is needed.

    Raises:
        InputError: it cannot; the message says what it has and how to read it.
    """
    able = holds(layout)
    if want == "prompts" or want in able:
        return
    columns = list(dict.fromkeys(column for one in layout.responses or () for column in (*one.column, *one.each)))
    last = "responses in the last turns" if "candidates" in able else "no responses"
    elsewhere = f"references in {', '.join(layout.references)}" if layout.references else last
    found = f"responses in {', '.join(columns)}" if columns else elsewhere
    needed = {
        "pairs": "says which of two responses is better",
        "comparisons": "says which of two responses is better",
        "unpaired": "says whether a response is good",
        "demonstrations": "holds a response to imitate",
        "candidates": "holds a response",
    }[want]
    others = [f"--as {one}" for one in able if one != "comparisons"]
    rather = f" It is read with {' or '.join(others)}." if others else ""
    raise InputError(f"{file}: no row {needed} (layout {layout.layout}, {found}).{rather}")


def _chosen(layout: LayoutMap, name: str | None, file: str) -> tuple[VerdictMap, ...]:
    """Choose the verdicts that count: all annotators' verdicts about one thing.

    Raises:
        InputError: rows have several verdicts and none was named, or none has that name.
    """
    verdicts = layout.verdicts or ()
    names = list(dict.fromkeys(one.name for one in verdicts))
    known = ", ".join(str(one) for one in names)
    if name is not None and verdicts:
        chosen = tuple(one for one in verdicts if one.name == name or name in one.column)
        if not chosen:
            raise InputError(f"{file}: there is no verdict {name!r} (known: {known}).")
        return chosen
    if len(names) > 1:
        raise InputError(
            f"{file}: several columns say which response is better. Choose one with --verdict {names[0]} (or {known})."
        )
    return verdicts


def _cast(verdict: VerdictMap, layout: LayoutMap, values: set[float], one_means: OneMeans | None, file: str) -> str:
    """Decide the meaning of a verdict's numbers, from all values in the file.

    Raises:
        InputError: they are ambiguous, and --one-means is not set.
    """
    responses = [one for one in layout.responses or () if one.kind == "response"]
    names = {name for one in responses for name in one.names}
    column = verdict.column[0]
    own = {float(name) for name in names if name.isdigit()}
    if len(responses) > 2 and not values - own:
        return "index"
    if min(values) >= 1 and max(values) <= 2 and values != {1.0}:
        return "one-two"
    if values <= {0, 1} and {"0", "1"} <= names and _CHOICE & {*words(column)}:
        return "index"
    if one_means is None:
        shown = ", ".join(f"{value:g}" for value in sorted(values)[:_SOME_VALUES])
        first, second = (one.column[0] if one.column else "the first" for one in [*responses, *responses][:2])
        word = "a positive number" if min(values) < 0 else "1"
        raise InputError(
            f"{file}: {column} holds {shown}, which is ambiguous. Set --one-means first if {word} "
            f"means that {first} is better, or --one-means second if {second} is."
        )
    if min(values) < 0:
        return f"{'positive' if one_means == 'first' else 'negative'}-first"
    if one_means == "first":
        return "one-two" if 2 in values else "one-zero"
    return "zero-one"
