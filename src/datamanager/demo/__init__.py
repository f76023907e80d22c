"""The demonstration: a sample clinic on an embedded server, backed up, changed, restored and compared."""
