"""Scores read from a language model: likelihoods, token probabilities, hidden states."""
