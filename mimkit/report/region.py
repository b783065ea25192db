"""Which part of an image all methods hide, whatever their grids."""

from typing import Final

import torch
from torch import Tensor

from mimkit.parts.records import Grid

NUM_IMAGES: Final = 8
HIDDEN_SHARE: Final = 0.3


def hidden_region(grid: Grid, seed: int) -> Tensor:
    """Chooses for each image which squares of the coarsest grid are hidden.

    Shape: (8, N) bool, equally many in every image.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(NUM_IMAGES, grid.num_patches, generator=generator)
    return noise.argsort(dim=1).argsort(dim=1) < max(1, round(HIDDEN_SHARE * grid.num_patches))


def fit_region(region: Tensor, coarse: Grid, grid: Grid) -> Tensor:
    """Says which patches of another grid cover a region, equally many in every image.

    Where squares hold whole patches that is exact. Else it is as many patches as the region's
    share of the image, those first of which it covers most.

    Shape: region (B, N) bool of the coarse grid; (B, N) bool of the other.
    """
    rows, cols = _overlap(coarse.rows, grid.rows), _overlap(coarse.cols, grid.cols)
    squares = region.view(-1, coarse.rows, coarse.cols).long()
    covered = (rows.T @ squares @ cols).flatten(1)  # (B, N), in fractions of the same size
    share = region.sum(dim=1)[0].item() / coarse.num_patches
    count = min(max(1, round(share * grid.num_patches)), grid.num_patches - 1)
    ranks = covered.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks < count


def _overlap(num_coarse: int, num_fine: int) -> Tensor:
    """How far intervals of two even divisions of a line overlap, in whole units: (coarse, fine)."""
    coarse, fine = torch.arange(num_coarse)[:, None], torch.arange(num_fine)
    end = torch.minimum((coarse + 1) * num_fine, (fine + 1) * num_coarse)
    return (end - torch.maximum(coarse * num_fine, fine * num_coarse)).clamp(min=0)
