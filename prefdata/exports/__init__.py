"""TODO exports."""
