"""Best-of-N, RSO and the other rules: scores in, selected candidates out."""
