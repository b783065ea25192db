"""Selfie (Trinh, Luong, Le 2019, arXiv 1906.02940) as a mimkit plugin."""
