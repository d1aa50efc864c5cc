"""Scores by code: Python functions, verifiers, similarity to a reference."""
