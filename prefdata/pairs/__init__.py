"""TODO prefdata.pairs."""
