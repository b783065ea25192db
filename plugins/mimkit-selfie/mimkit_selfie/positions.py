"""Learned embeddings of the places on a grid."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit import Grid, Module

LARGEST_GRID_BY_LOCATION = 4


class LearnedPositions(Module):
    """One vector per location, or the sum of one per row and one per column.

    Args:
        grid: the patch grid.
        embed_dim: width of the vectors.
        kind: "location", "decomposed", or "auto": by location up to 4 x 4 patches.
        std: standard deviation of the start values of every vector.

    Source: Selfie, arXiv 1906.02940, section 3.3: 16 locations at 32 px, 7 rows and 7 columns
        at 224 px. The start values are not documented.
    """

    def __init__(
        self,
        grid: Grid,
        embed_dim: int,
        kind: Literal["auto", "location", "decomposed"],
        std: float,
    ) -> None:
        super().__init__()
        self.num_cols = grid.cols
        if kind == "auto":
            small = max(grid.rows, grid.cols) <= LARGEST_GRID_BY_LOCATION
            kind = "location" if small else "decomposed"
        self.decomposed = kind == "decomposed"
        if self.decomposed:
            self.row = nn.Parameter(torch.randn(grid.rows, embed_dim) * std)
            self.col = nn.Parameter(torch.randn(grid.cols, embed_dim) * std)
        else:
            self.location = nn.Parameter(torch.randn(grid.num_patches, embed_dim) * std)

    def forward(self, index: Tensor) -> Tensor:
        """Looks positions up.

        Shape: (...) int64 to (..., D).
        """
        if self.decomposed:
            rows = F.embedding(index // self.num_cols, self.row)
            return rows + F.embedding(index % self.num_cols, self.col)
        return F.embedding(index, self.location)
