"""MaskFeat's target: histograms of oriented gradients."""

import math
from typing import Final

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from mimkit import Batch, Encoder, Geometry, Picture, RecipeError, Size, Target, Width, paste, take

NUM_BINS: Final = 9
"""Directions that are told apart: 20 degrees each, as opposite ones are the same."""
_FLAT: Final = 1e-3
"""Histograms with a norm below it are rounding of flat colour, and stay near zero."""


class HOG(Target):
    """For each cell and channel of a target patch, the share of every direction of the gradient.

    A pixel's gradient is that of Sobel's filters, images being mirrored at their borders. Bin k has
    the directions from 20 k to 20 k + 20 degrees, from x (to the right) towards y (down), modulo
    180: a vertical edge is in bin 0. Magnitudes are summed per cell, channel and bin, and the
    nine sums divided by their Euclidean norm, so that neither offset nor contrast of a channel
    matters. Hence the encoder's view will do: its normalisation changes no histogram.

    Args:
        geometry: the patch grid and the number of channels.
        cell_size: side of a cell in pixels; where patches are smaller, it is theirs.

    Shape: K = (cells down, cells right, channels, 9), flattened.
    Raises: RecipeError if cells do not divide patches.
    Source: MaskFeat, arXiv 2112.09133, section 3.2: 9 bins, 8 x 8 cells, each channel apart,
        each cell normalised. Sobel's filters, mirrored borders and votes for one bin alone are
        those of the released code, whose bins start at y and whose values are in another order.
        It also offers a Gaussian window over cells, which is left out. Here what is below 1e-3 is
        not scaled up to 1, or rounding would give flat cells a direction.
    """

    ragged = True
    needs_encoder = False

    def __init__(self, geometry: Geometry, *, cell_size: Size = 8) -> None:
        super().__init__()
        self.patch_size = geometry.grid.patch_size
        self.cell_size = min(cell_size, self.patch_size)
        if self.patch_size % self.cell_size:
            raise RecipeError(
                f"target 'hog', cell_size: must divide the patch size {self.patch_size}, "
                f"but is {cell_size}."
            )
        self.cells = self.patch_size // self.cell_size  # along each side of a patch
        self.width = Width("vector", self.cells**2 * geometry.channels * NUM_BINS)

    @torch.no_grad()
    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Gives the histograms of the target patches.

        Shape: (B, G, M, K) float32.
        """
        histograms = rearrange(
            oriented_histograms(batch.image.float(), self.cell_size),
            "b c k (h y) (w x) -> b (h w) (y x c k)",
            y=self.cells,
            x=self.cells,
        )
        return take(histograms, batch.mask.target)

    def render(self, prediction: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Draws the bins of each cell as strokes along the edges, in greys."""
        parts = {"y": self.cells, "x": self.cells, "k": NUM_BINS}
        strength = reduce(
            prediction.float().clamp(min=0), "b g m (y x c k) -> b g m y x k", "mean", **parts
        )
        strokes = _strokes(self.cell_size).to(strength)
        cells = torch.einsum("bgmyxk,kpq->bgmypxq", strength, strokes)
        patches = rearrange(cells, "b g m y p x q -> b g m 1 (y p) (x q)") * 4 - 2
        patches = patches.expand(-1, -1, -1, batch.image.shape[1], -1, -1)
        image = batch.image.float()
        return (Picture("predicted gradients", paste(image, patches, batch.mask)),)


def oriented_histograms(image: Tensor, cell_size: int) -> Tensor:
    """Gives the normalised histogram of every cell and channel.

    Shape: (B, C, H, W) to (B, C, 9, H / cell_size, W / cell_size).
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    # Sobel's filters. The difference comes first: in flat colour it is exactly 0.
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    # Opposite directions are one: turned to point down, or to the right if level.
    turned = torch.where(gy == 0, gx.abs(), gx * gy.sign())
    bins = (torch.atan2(gy.abs(), turned) * (NUM_BINS / math.pi)).floor() % NUM_BINS
    magnitude = torch.hypot(gx, gy)
    sums = torch.stack(
        [
            reduce(
                torch.where(bins == number, magnitude, 0.0),
                "b c (h p) (w q) -> b c h w",
                "sum",
                p=cell_size,
                q=cell_size,
            )
            for number in range(NUM_BINS)
        ],
        dim=2,
    )
    return F.normalize(sums, dim=2, eps=_FLAT)


def _strokes(size: int) -> Tensor:
    """Gives a line across the direction of each bin, (9, size, size) in [0, 1]."""
    direction = (torch.arange(NUM_BINS) + 0.5) * (math.pi / NUM_BINS)
    place = torch.arange(size) - (size - 1) / 2
    along = torch.cos(direction)[:, None, None] * place  # (9, 1, size)
    distance = along + (torch.sin(direction)[:, None] * place)[..., None]
    return (1 - distance.abs()).clamp(min=0)
