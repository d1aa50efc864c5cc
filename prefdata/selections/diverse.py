"""Diversity: k answers of a prompt that score high and are far apart.

Greedy, as maximal marginal relevance (Carbonell and Goldstein, 1998): the best first, and then always the answer with
the largest (1 - w) * s + w * d, where w is the weight, s the score brought to [0, 1] within the prompt and d the
distance to the nearest of those kept. Ties go to the earlier draw.

Distances: words, 1 - Jaccard of the sets of word pairs (of words, where an answer has one); embedding, 1 - cosine.
Words are compared without case and punctuation; in scripts without blanks each character is one, and so is each that
is neither letter nor digit where nothing else stands between two blanks (an emoji).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.errors import InputError
from prefdata.ids import digest
from prefdata.selections.rules import NOWHERE
from prefdata.specs import SelectSpec
from prefdata.stats.ragged import RaggedRows
from prefdata.stats.words import normalised
from prefdata.stats.words import words as _words
from prefdata.storage.schemas import read_part

Distances = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """How far apart two answers are; `vectors` are unit vectors by candidate id, or nothing: then words decide."""

    vectors: dict[str, NDArray[np.float64]] | None = None
    parents: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: SelectSpec) -> Distance:
        """Build the distance that a spec names.

        Raises:
            InputError: the file of embeddings cannot be read, or does not hold lists of finite numbers.
        """
        if spec.embeddings is None:
            return cls()
        path = Path(spec.embeddings)
        names, vectors = _embeddings(path)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        known = dict(zip(names, vectors / length, strict=True))
        content = digest(sorted([name, vector.tobytes().hex()] for name, vector in known.items()))
        return cls(known, {path.name: content})

    def between(self, rows: pl.DataFrame) -> Distances:
        """Return the distances of every two responses, shape (rows, rows).

        Raises:
            InputError: a candidate has no embedding.
        """
        if self.vectors is None:
            return _word_distances(rows["text"].to_list())
        if missing := [name for name in rows["candidate_id"] if name not in self.vectors]:
            raise InputError(f"--embeddings has none for candidate {missing[0]}: all that take part need one.")
        vectors = np.stack([self.vectors[name] for name in rows["candidate_id"]])
        return 1 - vectors @ vectors.T


def spread_ranks(answers: RaggedRows, spec: SelectSpec, distance: Distance) -> NDArray[np.int64]:
    """Return each row's rank in the greedy order of its prompt; rows after the k-th have none."""
    place = np.full(answers.rows.height, NOWHERE, np.int64)
    start = 0
    for size in answers.sizes.tolist():
        some = answers.rows[start : start + size]
        order = spread(some["score"].to_numpy(), distance.between(some), spec.k, spec.diverse)
        place[start + np.array(order)] = np.arange(1, len(order) + 1)
        start += size
    return place


def spread(scores: NDArray[np.float64], distances: Distances, k: int, weight: float) -> list[int]:
    """Return the first k rows of the greedy order, by number; shapes (n,) and (n, n)."""
    span = scores.max() - scores.min()
    merit = (scores - scores.min()) / span if span > 0 else np.zeros(len(scores))
    order = [int(scores.argmax())]
    nearest = distances[order[0]].copy()
    while len(order) < min(k, len(scores)):
        value = (1 - weight) * merit + weight * nearest
        value[order] = -np.inf
        order.append(int(value.argmax()))
        nearest = np.minimum(nearest, distances[order[-1]])
    return order


def _embeddings(path: Path) -> tuple[pl.Series, NDArray[np.float64]]:
    """Read the file's candidate_id column and its vectors, shape (rows, dimensions)."""
    try:
        rows = read_part(path, ["candidate_id", "embedding"])
        lists = rows["embedding"].cast(pl.List(pl.Float64))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{path} should be a Parquet file with candidate_id and embedding, a list of numbers "
            f"({str(error).splitlines()[0]})."
        ) from None
    if lists.list.len().n_unique() != 1 or lists.null_count():
        raise InputError(f"{path}: the embeddings are not of one length.")
    vectors = lists.explode().to_numpy().reshape(rows.height, -1)
    if bad := int((~np.isfinite(vectors)).any(axis=1).sum()):
        raise InputError(f"{path}: {bad} of {rows.height} embeddings hold null, NaN or infinity.")
    if bad := int((~vectors.any(axis=1)).sum()):
        raise InputError(f"{path}: {bad} of {rows.height} embeddings are of no length: they point nowhere.")
    if len(twice := rows["candidate_id"].filter(rows["candidate_id"].is_duplicated())):
        raise InputError(f"{path} has several embeddings of candidate {twice[0]}: give one of each.")
    return rows["candidate_id"], vectors


def _word_distances(texts: Sequence[str | None]) -> Distances:
    sets = [_word_pairs(text or "") for text in texts]
    known = {pair: number for number, pair in enumerate(dict.fromkeys(pair for one in sets for pair in one))}
    has = np.zeros((len(sets), max(1, len(known))), np.float32)
    for row, one in enumerate(sets):
        has[row, [known[pair] for pair in one]] = 1
    both, size = has @ has.T, has.sum(axis=1)
    either = size[:, None] + size[None, :] - both
    alike = np.where(either > 0, both / np.maximum(either, 1), 1)  # two answers without a word are the same
    return np.asarray(1 - alike, np.float64)


def _word_pairs(text: str) -> set[tuple[str, ...]]:
    words = [word for part in text.split() for word in _words(part) or normalised(part)]
    return set(pairwise(words)) if len(words) > 1 else {(word,) for word in words}
