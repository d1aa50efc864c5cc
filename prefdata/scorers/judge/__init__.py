"""LLM-as-a-judge: a rubric, a question, a parsed reply."""
