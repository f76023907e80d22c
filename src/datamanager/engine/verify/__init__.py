"""Reading what is stored and proving that it is what was written."""
