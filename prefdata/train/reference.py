"""The frozen reference of DPO: run once over the data, kept in Parquet, so that no second model is in memory.

The cache is named by what decides its numbers (the model's weights and config, the data's tokens and the precision) and
by its own checksum: one that is damaged is computed again.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from torch import Tensor

from prefdata.ids import FORMAT, digest
from prefdata.progress import Progress, quiet
from prefdata.storage.atomic import checksum, refused, write_atomically
from prefdata.train.batches import Tree, content, micro_batches
from prefdata.train.logps import sequence_logps
from prefdata.train.models import Loaded


def reference_logps(
    loaded: Loaded, revision: str, trees: Sequence[Tree], cache: Path, progress: Progress = quiet
) -> Tensor:
    """`[E, K]` log-probabilities of every response under `loaded` as it is now, read from `cache` if they are there.

    Args:
        loaded: the model that is the reference, before its first step.
        revision: the id of its weights and config.
        trees: the data.
        cache: a folder of cached log-probabilities.
        progress: told of every example read.
    """
    key = digest({"format": FORMAT, "model": revision, "data": content(trees), "dtype": str(loaded.autocast)})
    for path in cache.glob(f"{key}-*.parquet"):
        if checksum(path) == path.stem.removeprefix(f"{key}-"):
            return _from_table(pq.read_table(path, partitioning=None))
    values = compute(loaded, trees, progress)
    encoded = io.BytesIO()
    pq.write_table(_to_table(values), encoded)
    path = cache / f"{key}-{xxhash.xxh3_64_hexdigest(encoded.getbuffer())}.parquet"
    with refused(path):
        cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(encoded.getbuffer()))
    return values


@torch.no_grad()
def compute(loaded: Loaded, trees: Sequence[Tree], progress: Progress = quiet) -> Tensor:
    """`[E, K]` log-probabilities of every response, in the order of `trees`, on the CPU."""
    loaded.model.eval()
    values = torch.empty(len(trees), len(trees[0].responses) if trees else 1)
    done = 0
    for batch in micro_batches(trees, range(len(trees)), loaded.micro_tokens):
        with loaded.precision():
            values[batch.index] = sequence_logps(loaded.model, batch.to(loaded.device)).cpu()
        done += len(batch.index)
        progress(done, len(trees))
    return values


def _to_table(values: Tensor) -> pa.Table:
    return pa.table({f"response_{k}": pa.array(column.numpy()) for k, column in enumerate(values.unbind(1))})


def _from_table(rows: pa.Table) -> Tensor:
    return torch.stack([torch.tensor(column.to_numpy()) for column in rows.columns], dim=1)
