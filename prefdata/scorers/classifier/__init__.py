"""Reward models: a network with a score head."""
