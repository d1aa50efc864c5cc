"""Candidates in, scores out."""
