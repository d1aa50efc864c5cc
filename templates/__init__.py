"""Preprompts and instructions, as YAML files to copy and change; read by `prefdata.chat.transforms`."""
