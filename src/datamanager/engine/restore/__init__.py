"""Restoring and exporting backups."""
