"""The WAL archive at work: receiving, pushing, sealing."""
