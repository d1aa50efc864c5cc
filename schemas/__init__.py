"""The published contracts of the tables, one JSON file each; read by `prefdata.storage.schemas`."""
