"""TODO prefdata.comparisons."""
