"""Sampling with transformers, batch by batch, with a seed per candidate."""
