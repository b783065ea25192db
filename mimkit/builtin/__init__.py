"""Parts that several methods need, registered by the core's own entry points."""
