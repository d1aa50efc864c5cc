"""TODO sql."""
