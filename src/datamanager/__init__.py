"""DataManager for PostgreSQL: backups of a running server that are proven to come back."""

__version__ = "0.1.0"
