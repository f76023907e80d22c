"""The write-ahead log: names, timelines, records, and receiving it."""
