"""TODO hf."""
