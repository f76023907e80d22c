"""The use cases, one a file: backup, restore, export, verify."""
