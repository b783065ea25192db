"""Fixed position embeddings."""

import torch
from torch import Tensor

from mimkit.errors import RecipeError
from mimkit.parts.records import Grid


def sincos(grid: Grid, embed_dim: int) -> Tensor:
    """Gives the 2-D sine-cosine position embedding of every patch.

    The four quarters of the width are [sin row, cos row, sin col, cos col], with frequencies
    10000^(-k / (D / 4)).

    >>> sincos(Grid(2, 3, patch_size=4), 8).shape
    torch.Size([6, 8])

    Shape: (N, D) float32.
    Raises: RecipeError if D is not divisible by 4.
    Source: MoCo v3, arXiv 2104.02057; the order of the quarters is that of CAE's code. MAE's code
        puts the column first: the same up to a permutation of the width.
    """
    if embed_dim % 4:
        raise RecipeError(
            f"positions = 'sincos': embed_dim must be divisible by 4, but is {embed_dim}."
        )
    quarter = embed_dim // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, col = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.cols), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (row, col)]  # 2 x (N, D / 4)
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat(waves, dim=1).float()
