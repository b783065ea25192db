"""From TOML text to a validated recipe, or to all of its problems."""
