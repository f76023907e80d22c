"""The archive of a server's write-ahead log: stretches of bytes by position, on lines of timelines."""
