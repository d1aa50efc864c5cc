"""TODO openai."""
