"""TODO prefdata.engines."""
