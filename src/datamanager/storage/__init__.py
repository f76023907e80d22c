"""Where sealed bytes land: one Protocol of six methods, an implementation a file."""
