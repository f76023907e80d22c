"""Giving back the room of what no backup needs."""
