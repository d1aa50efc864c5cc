"""TODO prefdata.candidates."""
