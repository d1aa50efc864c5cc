"""TODO classifier."""
