"""Augmented renderings of images: one crop, flip and jitter per image, shared by all its views."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from mimkit.data.device import send
from mimkit.data.pixels.augment import Augment, Draws, draw
from mimkit.data.pixels.color import jitter
from mimkit.data.pixels.cut import Stored, cut
from mimkit.parts.records import View


def render(
    source: Stored, index: Tensor, view: View, draws: Draws | None, augment: Augment
) -> Tensor:
    """Renders one view of some images.

    Args:
        source: the images.
        index: (n,) int64, which of them.
        view: size, kernel and normalisation.
        draws: what was drawn for them; None shows whole images, whatever ``augment`` says.
        augment: what the draws were made for.

    Shape: (n, C, H, W) float32, on the device of the source's pixels, else on the CPU.
    """
    if draws is None:
        augment = Augment.none()
        zeros = np.zeros(len(index), dtype=np.int64)
        draws = draw(augment, source.extent(index.cpu()).numpy(), 0, zeros, zeros)
    return finish(cut(source, index, (view,), draws, augment)[view.name], view, draws.color)


def finish(pixels: Tensor, view: View, color: Tensor | None) -> Tensor:
    """Applies the colour jitter and the view's normalisation.

    Shape: pixels (n, C, H, W) uint8, or float32 with values from 0 to 1, which are cut off there;
        color (n, 3) or None; (n, C, H, W) float32.
    """
    mean, std = _constant(view.mean, pixels.device), _constant(view.std, pixels.device)
    if pixels.dtype == torch.uint8:
        images = pixels.to(torch.float32).mul_(1 / 255)
    else:
        images = pixels.clamp(0, 1)  # a kernel may overshoot
    if color is not None:
        images = jitter(images, send(color, pixels.device))
    return images.sub_(mean).div_(std)


def average(view: View, dtype: torch.dtype) -> Tensor:
    """Gives the mean colour as `finish` takes it, to fill what no image covers.

    Shape: (C, 1, 1) uint8 or float32.
    """
    mean = torch.tensor(view.mean)[:, None, None]
    return mean.mul(255).round().to(dtype) if dtype == torch.uint8 else mean


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Keeps per-channel numbers on the device, (C, 1, 1): sending them would cost every batch."""
    return torch.tensor(values, device=device)[:, None, None]
