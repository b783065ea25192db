"""Positions of BEiT's tokens on other sets of patches: a part of the grid, or another grid."""

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from mimkit import Grid, RecipeError

# Rows at the end of a relative table: cls to patch, patch to cls, cls to cls.
NUM_CLS_ROWS: Final = 3


def absolute_at(table: Tensor, context: Tensor) -> Tensor:
    """Picks the positions of the class token and of some patches.

    Shape: table (1, 1 + N, D), context (B, S) int64; (B, 1 + S, D).
    """
    return F.embedding(_token_numbers(context), table[0])


def relative_at(table: Tensor, index: Tensor, context: Tensor) -> Tensor:
    """Gives what is added to the attention between the class token and some patches.

    It differs from image to image, so it is as large as the attention weights of one block.

    Shape: table (rows, heads), index (1 + N, 1 + N) int64 rows of the table, context (B, S)
    int64; (B, heads, 1 + S, 1 + S).
    """
    tokens = _token_numbers(context)
    rows = index[tokens[:, :, None], tokens[:, None, :]]  # (B, 1 + S, 1 + S)
    return table[rows].permute(0, 3, 1, 2).contiguous()


def _token_numbers(context: Tensor) -> Tensor:
    """Counts from the class token, which is put in front: (B, S) to (B, 1 + S)."""
    return F.pad(context + 1, (1, 0))


def resample_absolute(table: Tensor, source: Grid, grid: Grid) -> Tensor:
    """Resamples learned positions for another grid (bicubic); the class token keeps its own.

    Shape: (1, 1 + N, D) for the patches of either grid.
    Source: BEiT's fine-tuning code, which does not blur before it shrinks.
    """
    cells = rearrange(table[:, 1:], "one (rows cols) d -> one d rows cols", rows=source.rows)
    cells = F.interpolate(cells, size=(grid.rows, grid.cols), mode="bicubic")
    return torch.cat([table[:, :1], rearrange(cells, "one d rows cols -> one (rows cols) d")], 1)


def resample_relative(table: Tensor, source: Grid, grid: Grid) -> Tensor:
    """Resamples a table of relative positions for another grid; the cls rows stay.

    Shape: ((2 rows - 1) (2 cols - 1) + 3, heads), for the rows and columns of either grid.
    Raises: RecipeError if the source has a single row or column of patches.
    Source: BEiT's fine-tuning code: the offsets of the source stand at geometrically growing
        distances (`source_offsets`), between them a cubic spline, beyond them the outermost
        value. Where rows or columns stay as many as they were, their offsets stay in place.
    """
    if min(source.rows, source.cols) < 2:
        raise RecipeError(
            "encoder 'beit_vit': relative positions can be resampled from at least 2 x 2 patches, "
            f"but there are {source.rows} x {source.cols}. Fine-tune on images of the same size."
        )
    rows = source_offsets(source.rows, grid.rows)
    cols = source_offsets(source.cols, grid.cols)
    targets = np.arange(1 - grid.rows, grid.rows), np.arange(1 - grid.cols, grid.cols)
    heads = rearrange(
        table[:-NUM_CLS_ROWS].detach().double().cpu().numpy(),
        "(rows cols) heads -> heads rows cols",
        rows=len(rows),
    )
    degrees = min(3, len(rows) - 1), min(3, len(cols) - 1)
    splines = [RectBivariateSpline(rows, cols, head, (None,) * 4, *degrees) for head in heads]
    resampled = np.stack([spline(*targets) for spline in splines], axis=-1)
    patches = torch.from_numpy(resampled).flatten(0, 1).to(table)
    return torch.cat([patches, table[-NUM_CLS_ROWS:]])


def source_offsets(num_source: int, num_target: int) -> NDArray[np.float64]:
    """Says where the offsets between ``num_source`` patches stand among ``num_target``.

    The distances between neighbours grow from 1 by a constant ratio, so that near offsets keep
    their meaning and the outermost source meets the outermost target. The ratio is searched from
    1.01 to 1.5: a target that is smaller, or very much larger, is not met.

    Shape: (2 num_source - 1,), ascending, 0 in the middle.
    """
    if num_source == num_target:
        return np.arange(1.0 - num_source, num_source)
    powers = np.arange(num_source - 1)
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (ratio**powers).sum() > num_target - 1:
            high = ratio
        else:
            low = ratio
    distances = ((low + high) / 2) ** powers
    offsets = distances.cumsum()
    return np.concatenate([-offsets[::-1], [0.0], offsets])
