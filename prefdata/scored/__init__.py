"""Scored candidates with all that a decision about them needs, whole prompts at a time: what select and pair read."""

from prefdata.scored.filters import EXCLUSION_REASONS, is_valid_score
from prefdata.scored.reader import PromptBatches, inputs_fingerprint, open_scored, source_scorer

__all__ = [
    "EXCLUSION_REASONS",
    "PromptBatches",
    "inputs_fingerprint",
    "is_valid_score",
    "open_scored",
    "source_scorer",
]
