"""ingest: rows of any layout in, prompts out, and with them the responses, labels and preferences that the rows hold.

What is read is stored as the rows say it. The texts are left as they are, byte for byte, with one exception: a lone
surrogate (half an emoji, which UTF-8 and so Parquet and every tokenizer refuse) becomes U+FFFD, and the rows concerned
are counted. A row that cannot be used is a bad row, reported by its file and number.

| as | made, besides the prompts |
|---|---|
| candidates | a sampler for each kind of response: `films-chosen`, `films-response`, …; scores that stand beside them |
| pairs, unpaired, demonstrations | one sampler with the source's name, and the table of that name |
| comparisons | verdicts on candidates of the run; responses that it does not have become candidates as well |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace as replaced
from typing import Any

import pyarrow as pa

from prefdata import ids
from prefdata.chat.transforms import INSTRUCTION, Instructions, training_messages
from prefdata.errors import BadRow, BadRows, InputError
from prefdata.formats.layout_maps import LayoutMap
from prefdata.formats.layouts import plain
from prefdata.formats.names import known_names, words
from prefdata.formats.readers import input_name
from prefdata.formats.reading import Reader, ReadOptions, holds
from prefdata.formats.records import KINDS, BadRowError, Record, Response
from prefdata.formats.score_columns import score_columns
from prefdata.prompts.collected import Collected
from prefdata.prompts.made import Made, all_made
from prefdata.specs import IngestSpec
from prefdata.storage.queries import candidate_files
from prefdata.storage.report import Report
from prefdata.storage.run import Outcome, Partition, Run, name_of
from prefdata.storage.schemas import SCORES

SIDES = ("chosen", "rejected")

_READ_AS = {
    "pairs": "which is preferred",
    "unpaired": "which is good and which bad",
    "candidates": "the responses alone",
}

_TWICE_HINT = "Duplicates were to be refused and nothing was written; --on-duplicates merge makes one of each."


def ingest(run: Run, files: Sequence[str], spec: IngestSpec, *, replace: bool = False) -> Outcome:
    """Read files, folders or hub datasets, and store what they hold; `spec.kind` says as what.

    The content is part of what a source is: other prompts or responses under the same name are refused unless
    `replace`.

    Args:
        run: where it is stored.
        files: their names, as `formats.readers.read` takes them.
        spec: the settings.
        replace: replace what an earlier source of this name has stored.

    Raises:
        InputError: a file is missing, empty or of an unknown kind or layout, or does not hold what is asked for;
            BadRows names every row by its place.
        SpecConflict: a source of this name holds other prompts or responses, or was made with other settings.
    """
    with closing(Ingestion(run, files, spec)) as work:
        work.read()
        return work.store(replace=replace)


class Ingestion:
    """One ingest under way: `read`, then `store`."""

    def __init__(self, run: Run, files: Sequence[str], spec: IngestSpec, reader: Reader | None = None) -> None:
        """Prepare; nothing is read yet."""
        self._run, self._spec, self._files = run, spec, files
        self.reader = reader or Reader(files, ReadOptions.of(spec, want=spec.kind))
        self.collected = Collected(run, spec, spec.source or name_of(input_name(files[0])), self.reader)
        self._rows_used = 0

    def close(self) -> None:
        """Give memory and temporary files back."""
        self.collected.close()

    def read(self) -> None:
        """Read all rows.

        Raises:
            BadRows: rows that cannot be used (unless they are to be left out, and some are left), or duplicates that
                were to be refused.
            InputError: as `ingest`.
        """
        layouts = 0
        for number, (row, record) in enumerate(self.reader.records()):
            if len(self.reader.layouts) > layouts:
                layouts = len(self.reader.layouts)
                self._refuse_prompts_alone(row.file, self.reader.layouts[row.file])
            try:
                self._take(number, record, row.values)
            except BadRowError as error:
                self.reader.bad.add(row, error)
                continue
            self._rows_used += 1
        self.reader.bad.refuse(any_left=self._rows_used > 0)
        self._refuse_nothing()
        responses = self.collected.responses
        refused = [row for one in responses.values() for row in one.twice] or self.collected.prompts.twice
        if refused and self._spec.on_duplicates == "error":
            raise BadRows(refused, hint=_TWICE_HINT)

    def made(self) -> list[Made]:
        """Every partition that is to be made, the prompts first."""
        return all_made(self.collected)

    def store(self, *, replace: bool) -> Outcome:
        """Write what was read.

        Raises:
            SpecConflict: as `ingest`.
        """
        made = self.made()
        if not replace:
            for one in made:
                one.partition.check(one.lineage)
        done = []
        for one in made:  # the samplers first, then the scores of their candidates
            seen = candidate_files(self._run) if one.partition.table is SCORES else None
            done.append(one.partition.derive_in_pieces(one.lineage, _writing(one), replace=replace, seen=seen))
        if replace and self._spec.kind != "prompts":
            self._forget([one.partition for one in made])
        self.reader.bad.put_aside(self._run.path / "quarantine" / f"{self.collected.name}.jsonl")
        first = done[0] if self.collected.given is None else done[-1]
        return next((replaced(first, did=one.did) for one in done if one.did != "kept"), first)

    def _forget(self, made: Sequence[Partition]) -> None:
        """Remove what an earlier source of this name had, and this one has not: other kinds of responses, scores."""
        new, name = {partition.path for partition in made}, self.collected.name
        old = [self._run.partition("candidates", f"{name}-{kind}") for kind in KINDS]
        for partition in (*old, self._run.partition("candidates", name), *self._run.partitions("scores")):
            lineage = partition.lineage()
            ours = lineage is not None and lineage.step == "ingest" and lineage.spec.get("source", name) == name
            if ours and partition.path not in new:
                partition.remove()

    def _take(self, number: int, record: Record, values: Any) -> None:
        spec, of = self._spec, self.collected
        if record.pair_ids is not None:
            self._take_ids(record)
            return
        if spec.system and record.messages[0]["role"] != "system":
            record.messages.insert(0, {"role": "system", "content": spec.system})
        if spec.kind == "prompts":
            self._take_prompt(record)
            return
        if spec.kind == "candidates":
            record.responses += references_as_responses(record)
        self._require(record)
        columns = [column for _, column in spec.score_columns]
        scores = score_columns(values, record.responses, columns) if columns else [()] * len(record.responses)
        key = ids.prompt_id(record.messages, record.tools)
        named = metadata_of(record)
        record.metadata = of_prompt(record)
        kept_elsewhere = spec.kind == "pairs" or len(record.responses) == 1
        prompt = of.prompts.add(record, key, kept_elsewhere=kept_elsewhere), key
        numbers = []
        for response, own, metadata in zip(record.responses, scores, named, strict=True):
            kind = response.kind if spec.kind == "candidates" else "all"
            model = response.model or (response.kind if kind != "all" else "response")
            collector = of.responses_of(kind)
            numbers.append(collector.add(record, number, prompt, response, own, model=model, metadata=metadata))
        of.counts["rows_without_responses"] += not record.responses
        if of.given is not None:
            of.given.add(record, key, numbers)

    def _require(self, record: Record) -> None:
        """Refuse a row that does not say what was asked for.

        Raises:
            BadRowError: it does not.
        """
        kind = self._spec.kind
        if kind in ("pairs", "comparisons"):
            record.preferences()
        if kind == "comparisons" and len({response.key for response in record.responses}) < len(record.responses) == 2:
            raise BadRowError("same_response", "both responses are the same")
        if kind == "unpaired" and not any(one.label is not None or one.kind in SIDES for one in record.responses):
            raise BadRowError("no_label", "it does not say whether its response is good")
        if kind == "demonstrations":
            if not record.responses:
                record.responses = record.demonstrations()
            if not record.responses:
                raise BadRowError("no_response", "it holds no response to imitate")

    def _take_prompt(self, record: Record) -> None:
        prompts = self.collected.prompts
        if any(response.kind != "reference" for response in record.responses):
            both, record.metadata = record.metadata, of_prompt(record)
            self.reader.not_kept.update(both.keys() - record.metadata.keys())
            self.reader.kept.subtract(both.keys() - record.metadata.keys())
        if self.collected.instructions is not None:
            self._instruct(record, self.collected.instructions)
        key = ids.prompt_id(record.messages, record.tools)
        before = len(prompts)
        refuse = self._spec.on_duplicates == "error"
        number = prompts.add(record, key, remember_place=refuse)
        if refuse and len(prompts) == before:
            prompts.twice.append(BadRow(record.file, record.row, f"the same prompt as {prompts.first_place(number)}"))

    def _instruct(self, record: Record, instructions: Instructions) -> None:
        """Put an instruction into the first user turn, as its metadata tell.

        A reference, which does not heed the instruction, goes to the metadata too.
        """
        if INSTRUCTION in record.metadata:
            raise BadRowError(
                "instructed",
                "its metadata hold an instruction already; rename that column, or ingest it without --instructions",
            )
        key = ids.prompt_id(record.messages, record.tools)
        instruction: dict[str, Any] = dict(instructions.draw(self._spec.seed, key))
        # With an instruction or without, a conversation is in the same split.
        test = ids.unit_uniform(self._spec.seed, "split", key) < self._spec.test
        record.split = record.split or ("test" if test else "train")
        record.messages = training_messages(record.messages, instruction)
        if record.references:
            instruction["reference_without"] = record.references[0][0]
            record.references = []
        record.metadata = {**record.metadata, INSTRUCTION: instruction}

    def _take_ids(self, record: Record) -> None:
        """Take a verdict on two candidates of the run, named by their ids."""
        of = self.collected
        if self._spec.kind != "comparisons" or of.given is None:
            raise BadRowError("ids", "it names candidates by their ids, which is read with --as comparisons")
        assert record.pair_ids is not None
        first, second = record.pair_ids
        for one in record.pair_ids:
            if one not in of.ids.prompt_of:
                raise BadRowError("no_candidate", f"there is no candidate {one} in the run")
        if first == second:
            raise BadRowError("same_response", "both responses are the same candidate")
        prompt = of.ids.prompt_of[first]
        if of.ids.prompt_of[second] != prompt:
            raise BadRowError("two_prompts", "the two responses are to different prompts")
        of.given.add(record, prompt, [of.ids.number(one) for one in record.pair_ids])

    def _refuse_prompts_alone(self, file: str, layout: LayoutMap) -> None:
        """Refuse to take prompts alone of a file that says what is preferred, where nobody asked for them alone.

        Raises:
            InputError: what it holds, and how it is read.
        """
        able = holds(layout)
        if self._spec.kind != "prompts" or "kind" in self._spec.model_fields_set or not {"pairs", "unpaired"} & {*able}:
            return
        columns = ", ".join(
            dict.fromkeys(one for entry in layout.responses or () for one in (*entry.column, *entry.each))
        )
        others = "".join(f"--as {one} ({_READ_AS[one]}), " for one in able if one in _READ_AS)
        raise InputError(
            f"{file}: it holds responses{f' ({columns})' if columns else ''}, and says which are good. Read them with "
            f"{others}or the prompts alone with --as prompts."
        )

    def _refuse_nothing(self) -> None:
        """Refuse to store nothing of what was asked for.

        Raises:
            InputError: the files hold nothing of it.
        """
        of = self.collected
        if (self._spec.kind == "candidates" and not of.responses) or (of.given is not None and not of.given.said):
            raise InputError(f"{self._files[0]}: no row holds a response. Without --as prompts are read.")


def references_as_responses(record: Record) -> list[Response]:
    """Return the references of a row that are not among its responses."""
    known = {response.text for response in record.responses if response.kind == "reference"}
    texts = [text for text, _ in record.references if text not in known]
    return [Response("reference", ({"role": "assistant", "content": text},)) for text in dict.fromkeys(texts)]


def metadata_of(record: Record) -> list[str | None]:
    """Return each response's metadata as JSON; the row's own metadata is added if the row has one response."""
    alone = len(record.responses) == 1
    found = []
    for response in record.responses:
        own = {name: plain(value) for name, value in response.attributes.items()}
        if alone:
            own = {**record.metadata, **own}
        found.append(json.dumps(own, ensure_ascii=False) if own else None)
    return found


def of_prompt(record: Record) -> dict[str, Any]:
    """Return the prompt's metadata: the row's; if the row has one response, without what describes the response."""
    if len(record.responses) != 1:
        return record.metadata
    of_response = known_names("of_response")
    return {name: value for name, value in record.metadata.items() if not of_response & {*words(name)}}


def _writing(made: Made) -> Callable[[], Generator[pa.Table, None, Report]]:
    def pieces() -> Generator[pa.Table, None, Report]:
        yield from made.tables()
        return made.report

    return pieces
