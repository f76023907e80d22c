"""Restoring files that other programs made: pg_dump, pg_dumpall, pg_basebackup, and our own export."""
