"""DuckDB on a run: read-only, bounded, interruptible."""
