"""Recovery to a moment: what the archive allows, what a target means, and replaying up to it."""
