"""Weights that a run begins with, or is compared with: found, read, and put into its parts."""
