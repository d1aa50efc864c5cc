"""TODO prefdata.scores."""
