"""N candidates per prompt: a table of prompts in, a table of candidates out."""
