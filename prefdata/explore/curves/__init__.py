"""Best-of-N curves: reward against N and KL, with intervals."""
