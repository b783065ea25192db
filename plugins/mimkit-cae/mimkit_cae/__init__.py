"""CAE (Chen et al. 2022, arXiv 2202.03026) as a mimkit plugin."""
