"""Model folders: find, identify and load them."""
