"""From a TOML file to parts: what is registered, what a recipe says, what it builds."""
