"""An image as Pillow holds it, whatever its number of channels, in 8 bits or floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimkit.parts.records import Interpolation

Scale = tuple[float, float]
"""The stored values that become 0 and 1."""

_KERNELS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, eq=False)
class Raster:
    """An image in 8 bits, or in float32.

    Args:
        bands: one image in RGB; or else one image a channel, all in mode L, or all in F.
    """

    bands: tuple[Image.Image, ...]

    @classmethod
    def of(cls, pixels: NDArray[Any]) -> Raster:
        """Takes pixels, (H, W, C) uint8 or float32."""
        if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
            return cls((Image.fromarray(np.ascontiguousarray(pixels)),))
        channels = np.moveaxis(pixels, 2, 0)
        return cls(tuple(Image.fromarray(np.ascontiguousarray(one)) for one in channels))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow has it."""
        return self.bands[0].size

    @property
    def width(self) -> int:
        """In pixels."""
        return self.bands[0].width

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bands[0].height

    @property
    def deep(self) -> bool:
        """Whether pixels are in float32."""
        return self.bands[0].mode == "F"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Gives the pixels, (H, W, C)."""
        if self.bands[0].mode == "RGB":
            pixels = np.asarray(self.bands[0])
        else:
            pixels = np.stack([np.asarray(band) for band in self.bands], axis=2)
        return pixels if dtype is None else pixels.astype(dtype)

    def tensor(self) -> Tensor:
        """Gives the pixels, (C, H, W) uint8 or float32."""
        return torch.from_numpy(np.asarray(self).transpose(2, 0, 1).copy())

    def resized(
        self,
        size: tuple[int, int],
        interpolation: Interpolation,
        box: tuple[float, float, float, float],
    ) -> Raster:
        """Resizes a part of the image.

        Args:
            size: height and width of the result.
            interpolation: the kernel; it is widened where the image shrinks.
            box: the part: left, top, right, bottom.
        """
        height, width = size
        kernel = _KERNELS[interpolation]
        return Raster(tuple(band.resize((width, height), kernel, box) for band in self.bands))

    def mirrored(self) -> Raster:
        """Mirrors it, left to right."""
        return Raster(tuple(band.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for band in self.bands))

    def padded(self, padding: int, mode: Literal["zero", "reflect"]) -> Raster:
        """Adds black, or what is mirrored at the border pixels, on every side."""
        around = ((padding, padding), (padding, padding), (0, 0))
        return Raster.of(np.pad(np.asarray(self), around, _PADDING[mode]))

    def scaled(self, scale: Scale) -> Raster:
        """Brings float32 pixels to [0, 1], and cuts off what is outside."""
        return Raster.of(scaled(np.asarray(self), scale))


_PADDING: Final[dict[str, Literal["constant", "reflect"]]] = {
    "zero": "constant",
    "reflect": "reflect",
}


def scaled(values: NDArray[np.float32], scale: Scale) -> NDArray[np.float32]:
    """Brings stored values to [0, 1], and cuts off what is outside."""
    low, high = scale
    shares: NDArray[np.float32] = (values - np.float32(low)) / np.float32(high - low)
    return shares.clip(0, 1, out=shares)
