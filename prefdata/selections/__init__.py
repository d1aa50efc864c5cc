"""TODO prefdata.selections."""
