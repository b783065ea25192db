"""BEiT (Bao et al. 2021, arXiv 2106.08254) as a mimkit plugin."""
