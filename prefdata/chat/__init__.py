"""Text to token ids and back: one encoder for training, scoring, likelihoods and sampling."""
