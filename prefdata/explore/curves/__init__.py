"""TODO curves."""
