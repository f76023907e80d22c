"""Chunks sealed together, and reading them."""
