"""Prompts: the verb `ingest`."""

from prefdata.prompts.ingest import ingest

__all__ = ["ingest"]
