"""Whether a restore will succeed on this machine, found out before anything is copied."""
