"""Tokens that no encoder has made: what a probe of all tokens gets out of the image itself."""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.builtin.positions import sincos
from mimkit.parts.patches import patchify
from mimkit.parts.records import Grid, Tokens

_SIDE: Final = 32
_PIECE: Final = 4
_WIDTH: Final = 96


class PixelTokens(nn.Module):
    """Cuts an image, averaged down to at most 32 x 32 cells, into pieces of 4 x 4.

    A token is the pixels of a piece followed by the sine-cosine embedding of its position, without
    which a probe could not tell where a piece lies. It is the same for every method.

    Args:
        channels: C of the images.
        num_heads: what the width must be divisible by; None for 12.
    """

    def __init__(self, channels: int, num_heads: int | None) -> None:
        super().__init__()
        step = math.lcm(4, num_heads or 12)
        pixels = channels * _PIECE**2
        self.embed_dim = step * math.ceil(max(_WIDTH, pixels + 4) / step)

    def features(self, image: Tensor) -> Tokens:
        """Gives the tokens of whole images.

        Shape: image (B, C, H, W); patches (B, T, D) with D = ``embed_dim``, of 32 px or more
            T = 64.
        """
        rows, cols = (max(1, min(side, _SIDE) // _PIECE) for side in image.shape[2:])
        small = F.adaptive_avg_pool2d(image, (rows * _PIECE, cols * _PIECE))
        pixels = patchify(small, _PIECE).flatten(2)  # (B, T, C * 16)
        grid = Grid(rows, cols, _PIECE)
        places = sincos(grid, self.embed_dim - pixels.shape[-1]).to(image)
        patches = torch.cat([pixels, places.expand(len(image), -1, -1)], dim=-1)
        index = torch.arange(grid.num_patches, device=image.device).expand(len(image), -1)
        return Tokens(patches, patches[:, :0], index)
