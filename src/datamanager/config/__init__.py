"""One typed declaration of every option: where the home is, what ``config.toml`` may say, names and secret files."""
