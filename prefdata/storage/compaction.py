"""Compaction: small parts are joined, rows are dropped, and rows of the same prompt put next to each other.

Rows are written as they are finished, in whatever order that is, so that a crash loses nothing. Rows of the same prompt
are then near each other, in one part or in the next ones. When a table is finished, parts that are not full are read
once, in order: rows whose prompt has no rows in later parts are written, the others wait for those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.keyed_random import Bits, distinct, id_prefix64
from prefdata.storage.atomic import storage_errors
from prefdata.storage.partition import Partition
from prefdata.storage.schemas import read_part, superseded_rows

SMALL_PART = 8 << 20
"""Bytes on disk below which a part is joined with others, where there are more than `FEW_PARTS` such."""
FEW_PARTS = 64

FULL_ROWS = 100_000
FULL_BYTES = 64 << 20
"""Rows, or bytes in memory, at which a part is full."""

MOST_WAITING = 4 * FULL_ROWS
"""Rows that wait for others of their prompts; where more would have to, those are far apart, and none is waited for."""


def compact(partition: Partition, key: Sequence[str], *, by_prompt: bool = False) -> None:
    """Drop rows whose `key` a later row has too, and join small parts: one row a key, and not a file every second.

    With `by_prompt` each prompt's rows are put next to each other, sorted by sample_index, in parts that are not full;
    full ones stay as they are, whatever is added.

    Only for the one process that ends the work. Killed in the middle, rows may be there twice, in an old part and in
    the new one: readers take them once, and the next compaction drops them.
    """
    parts = partition.stored()
    dropped = {parts[number]: rows for number, rows in superseded_rows(parts, list(key)).items()}
    small = [part for part in parts if part.stat().st_size < SMALL_PART and _rows(part) < FULL_ROWS]
    join = len(small) > FEW_PARTS or (by_prompt and not is_clustered(map(prompt_runs, small)))
    _rewrite(partition, dropped, small if join else (), by_prompt=by_prompt)


def discard(partition: Partition, rows: Mapping[Path, Sequence[int]]) -> None:
    """Drop rows, given by their numbers for each part."""
    _rewrite(partition, rows)


def _rewrite(
    partition: Partition,
    dropped: Mapping[Path, Sequence[int]],
    joined: Collection[Path] = (),
    *,
    by_prompt: bool = False,
) -> None:
    changes = {*dropped, *joined}
    for changed, group in groupby(partition.stored(), changes.__contains__):
        for rows, parts in merged(list(group), dropped, by_prompt=by_prompt) if changed else ():
            if rows.num_rows:
                partition.append(rows)
            with storage_errors(partition.path):
                for part in parts:
                    part.unlink(missing_ok=True)


def _rows(part: Path) -> int:
    return int(pq.read_metadata(part).num_rows)


def prompt_runs(part: Path) -> Bits:
    """Return the prompts of a part's rows as keys, one for each run of rows of the same prompt."""
    return id_prefix64(read_part(part, ["prompt_id"])["prompt_id"].rle().struct.field("value"))


def is_clustered(runs: Iterable[Bits]) -> bool:
    """Whether each prompt's rows are together, in one part or at the end of one and the start of the next."""
    found = [np.empty(0, np.uint64)]
    for part in runs:
        if len(distinct(part)) < len(part):
            return False
        found.append(part)
    keys = np.concatenate(found)
    keys = keys[np.append(keys[1:] != keys[:-1], True)[: len(keys)]]  # a run that continues in the next part is one
    return len(distinct(keys)) == len(keys)


def merged(
    parts: Sequence[Path], dropped: Mapping[Path, Sequence[int]], *, by_prompt: bool
) -> Iterator[tuple[pa.Table, Sequence[Path]]]:
    """Yield the rows of parts without the dropped ones (by number), about a full part at a time.

    With each table come the parts that are not needed any more. `by_prompt` groups rows by prompt, and sorts each
    prompt's by sample_index.
    """
    last = _last_parts(parts) if by_prompt else None
    waiting, part_of, needed = None, np.empty(0, np.int64), 0
    for number, part in enumerate(parts):
        rows = pq.read_table(part, partitioning=None)
        rows = rows.take(np.delete(np.arange(rows.num_rows), dropped[part])) if part in dropped else rows
        waiting = rows if waiting is None else pa.concat_tables([waiting, rows], promote_options="default")
        part_of = np.append(part_of, np.full(rows.num_rows, number))
        if number + 1 < len(parts) and waiting.num_rows < 2 * FULL_ROWS and waiting.nbytes < 2 * FULL_BYTES:
            continue  # some of them may have to wait, and what is written should be a full part
        complete, order = np.ones(waiting.num_rows, bool), np.arange(waiting.num_rows)
        if last is not None:
            prompt = id_prefix64(pl.Series(waiting["prompt_id"]))
            complete = last[1][np.searchsorted(last[0], prompt)] <= number
            complete |= np.count_nonzero(~complete) > MOST_WAITING
            _, first, of = np.unique(prompt, return_index=True, return_inverse=True)
            order = np.lexsort((waiting["sample_index"].to_numpy(), first[of]))
        written, part_of = waiting.take(order[complete[order]]), part_of[~complete]
        waiting = waiting.filter(pa.array(~complete))
        still = int(part_of.min(initial=number + 1))
        yield written, parts[needed:still]
        needed = still


def _last_parts(parts: Sequence[Path]) -> tuple[Bits, np.ndarray]:
    """Return the keys of all prompts, sorted, and the number of the last part with rows of each."""
    runs = [prompt_runs(part) for part in parts]
    keys, number = np.concatenate(runs), np.repeat(np.arange(len(runs)), [len(one) for one in runs])
    prompts, at = np.unique(keys[::-1], return_index=True)
    return prompts, number[::-1][at]
