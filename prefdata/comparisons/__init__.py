"""Which of two responses is better: by models, judges and people."""
