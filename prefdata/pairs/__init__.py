"""Chosen and rejected responses: scored candidates or verdicts in, pairs out."""
