"""Fixed position embeddings."""

from typing import Literal

import torch
from torch import Tensor

from mimkit.errors import RecipeError
from mimkit.parts.records import Grid

First = Literal["rows", "cols"]


def sincos(grid: Grid, embed_dim: int, first: First = "rows") -> Tensor:
    """Gives the 2-D sine-cosine position embedding of every patch.

    The four quarters of the width are [sin row, cos row, sin col, cos col], or those of the column
    first, with frequencies 10000^(-k / (D / 4)).

    >>> sincos(Grid(2, 3, patch_size=4), 8).shape
    torch.Size([6, 8])

    Shape: (N, D) float32.
    Raises: RecipeError if D is not divisible by 4.
    Source: MoCo v3, arXiv 2104.02057; "rows" is the order of CAE's code, "cols" that of MAE's: the
        same up to a permutation of the width.
    """
    if embed_dim % 4:
        raise RecipeError(
            f"positions = 'sincos': embed_dim must be divisible by 4, but is {embed_dim}."
        )
    quarter = embed_dim // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, col = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.cols), indexing="ij")
    axes = (row, col) if first == "rows" else (col, row)
    angles = [axis.reshape(-1, 1) * frequency for axis in axes]  # 2 x (N, D / 4)
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat(waves, dim=1).float()


def sincos_grid(table: Tensor, patch_size: int) -> tuple[Grid, First] | None:
    """Finds the grid whose sine-cosine positions a table holds, and the order of their quarters.

    >>> sincos_grid(sincos(Grid(2, 3, 4), 8, "cols"), 4)
    (Grid(rows=2, cols=3, patch_size=4), 'cols')

    Args:
        table: positions of the patches, row by row; also as rounded to 16 bits.
        patch_size: of the grid, in pixels.

    Shape: ``table`` (N, D) float32. Returns: None if it holds other positions.
    """
    num_patches, embed_dim = table.shape
    if embed_dim % 4 or not num_patches or not table.is_floating_point():
        return None
    tolerance = _rounding(table)
    # The first patch stands at 0, 0 in every grid, which tells learned positions at once.
    if not torch.allclose(table[:1], sincos(Grid(1, 1, 1), embed_dim), atol=tolerance, rtol=0):
        return None
    shapes = [(r, num_patches // r) for r in range(1, num_patches + 1) if not num_patches % r]
    # The nearest to a square first: all but one are tried in vain.
    for rows, cols in sorted(shapes, key=lambda shape: abs(shape[0] - shape[1])):
        grid = Grid(rows, cols, patch_size)
        for first in ("rows", "cols"):
            if torch.allclose(table, sincos(grid, embed_dim, first), atol=tolerance, rtol=0):
                return grid, first
    return None


def _rounding(table: Tensor) -> float:
    """Returns how far rounding to the type that a table was kept in moves a value of at most 1."""
    if torch.equal(table, table.bfloat16().float()):
        return 1e-2
    return 1e-3 if torch.equal(table, table.half().float()) else 1e-4
