"""Runs of commands: their records, logs, queue and worker, and what happens around them."""
