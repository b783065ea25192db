"""Encoder ``timm``: transformers and ResNets of timm, by name."""
