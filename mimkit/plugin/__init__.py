"""``mimkit plugin new``: a package to start from."""
