"""Model folders: loading their weights."""
