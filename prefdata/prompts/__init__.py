"""Any file of prompts, responses or preferences in, tables of a run out."""
