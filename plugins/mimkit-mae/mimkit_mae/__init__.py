"""MAE (He et al. 2021, arXiv 2111.06377) as a mimkit plugin, and the target of MaskFeat."""
