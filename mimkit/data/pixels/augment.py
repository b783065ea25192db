"""How training images vary, and what chance decided for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.data.counter import uniform
from mimkit.data.device import send

EPOCH_STRIDE: Final = 2**40
"""Random numbers are drawn for the number ``epoch * EPOCH_STRIDE + index``."""
_VIEW_STREAM: Final = 101
_TRIES: Final = 10


@dataclass(frozen=True)
class Augment:
    """How training images vary.

    Args:
        crop: the whole image; a crop of its own size from the padded image; or a random part
            resized to the view. All but the last keep the image's aspect: where the view has
            another, its largest centred rectangle is taken.
        padding: for crop "pad", in pixels of the stored image, on each side.
        padding_mode: black, or mirrored at the border pixels.
        crop_scale: for crop "resized", the least and the largest share of the area.
        crop_ratio: for crop "resized", the least and the largest width through height.
        flip: whether every other image is mirrored, left to right.
        color_jitter: strength s: brightness, contrast and saturation are scaled by factors between
            max(0, 1 - s) and 1 + s.
    """

    crop: Literal["none", "pad", "resized"] = "resized"
    padding: int = 4
    padding_mode: Literal["zero", "reflect"] = "zero"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: float = 0.0

    @classmethod
    def none(cls) -> Augment:
        """Whole images as they are."""
        return cls(crop="none", flip=False)


@dataclass(frozen=True)
class Draws:
    """What chance decided for each of n images.

    Args:
        box: (n, 4) float32, top, left, height and width in pixels of the stored image.
        flip: (n,) bool, whether it is mirrored.
        color: (n, 3) float32 factors of brightness, contrast and saturation; None for no jitter.
    """

    box: Tensor
    flip: Tensor
    color: Tensor | None = None

    def to(self, device: torch.device) -> Draws:
        """Returns the same draws on a device, without waiting for it."""
        return Draws(
            send(self.box, device),
            send(self.flip, device),
            None if self.color is None else send(self.color, device),
        )


def draw(
    augment: Augment,
    image_sizes: NDArray[np.int64],
    seed: int,
    epoch: NDArray[np.int64],
    index: NDArray[np.int64],
) -> Draws:
    """Draws crop, flip and jitter of each image, from (seed, epoch, index) alone.

    Shape: image_sizes (n, 2), epoch (n,), index (n,).
    Source: the resized crop has the distribution of torchvision's ``RandomResizedCrop``: ten
        tries of area and aspect, then the largest centred box of an allowed aspect.
    """
    u = uniform(seed, _VIEW_STREAM, epoch * EPOCH_STRIDE + index, 6 + 2 * _TRIES)
    place, flip, color, tries = u[:, :2], u[:, 2], u[:, 3:6], u[:, 6:].reshape(-1, _TRIES, 2)
    sizes = image_sizes.astype(np.float64)
    if augment.crop == "resized":
        extent, centred = _extent(augment, sizes, tries)
        room = sizes - extent
        corner = np.where(centred[:, None], np.floor(room / 2), np.floor(place * (room + 1)))
    elif augment.crop == "pad":
        extent = sizes
        corner = np.floor(place * (2 * augment.padding + 1)) - augment.padding
    else:
        extent, corner = sizes, np.zeros_like(sizes)
    strength = augment.color_jitter
    weakest = max(0.0, 1 - strength)
    factors = weakest + color * (1 + strength - weakest)
    return Draws(
        torch.from_numpy(np.concatenate([corner, extent], axis=1).astype(np.float32)),
        torch.from_numpy((flip < 0.5) & augment.flip),
        torch.from_numpy(factors.astype(np.float32)) if strength else None,
    )


def _extent(
    augment: Augment, sizes: NDArray[np.float64], tries: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Gives the height and width of each resized crop, and whether no try did fit."""
    low, high = augment.crop_scale
    narrow, wide = augment.crop_ratio
    area = sizes.prod(1, keepdims=True) * (low + (high - low) * tries[:, :, 0])
    ratio = narrow * (wide / narrow) ** tries[:, :, 1]
    extents = np.round(np.sqrt(np.stack([area / ratio, area * ratio], axis=2)))  # (n, tries, 2)
    fits = ((extents >= 1) & (extents <= sizes[:, None])).all(2)
    first = extents[np.arange(len(sizes)), fits.argmax(1)]
    height, width = sizes.T
    widest = np.clip(np.round(height * wide), 1, width)
    highest = np.clip(np.round(width / narrow), 1, height)
    centred = ~fits.any(1)
    return np.where(centred[:, None], np.stack([highest, widest], axis=1), first), centred
