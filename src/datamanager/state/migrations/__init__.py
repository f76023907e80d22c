"""Revisions of the state's tables; each release's remain for ever, so that every older state can be opened."""
