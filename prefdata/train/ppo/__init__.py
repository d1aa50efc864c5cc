"""Reinforcement learning from a run's prompts: rollouts, advantages, updates."""
