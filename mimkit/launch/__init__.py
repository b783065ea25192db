"""Where processes run, whatever they do."""
