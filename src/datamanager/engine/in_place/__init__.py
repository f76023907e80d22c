"""The restore in place and its undo: beside, checked, exchanged, the old state kept."""
