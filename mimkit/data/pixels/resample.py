"""Crops and resampling of many small images at once, as Pillow does it for one.

8-bit pixels stay so, and are rounded after each of the two passes as Pillow rounds them, so that an
image looks the same whether it was resized here, on the device, or from its file in a worker. Those
in floating point are not rounded.
"""

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

from mimkit.parts.records import Interpolation

PaddingMode = Literal["zero", "reflect"]


def crop(
    pixels: Tensor, corner: Tensor, flip: Tensor, size: tuple[int, int], padding_mode: PaddingMode
) -> Tensor:
    """Cuts whole pixels out, one place per image; what lies outside is padding.

    Shape: pixels (n, C, H, W) uint8 or float32, corner (n, 2) of top and left, may be negative,
        flip (n,) bool; result (n, C, *size).
    """
    n, channels, height, width = pixels.shape
    device = pixels.device
    rows = corner[:, :1].long() + torch.arange(size[0], device=device)  # (n, h)
    cols = corner[:, 1:].long() + torch.arange(size[1], device=device)  # (n, w)
    cols = torch.where(flip[:, None], cols.flip(1), cols)
    near_rows, near_cols = reflect(rows, height), reflect(cols, width)
    place = (near_rows[:, :, None] * width + near_cols[:, None, :]).view(n, 1, -1)
    cut = pixels.reshape(n, channels, -1).gather(2, place.expand(-1, channels, -1))
    cut = cut.view(n, channels, *size)
    if padding_mode == "zero":
        inside = (near_rows == rows)[:, :, None] & (near_cols == cols)[:, None, :]  # (n, h, w)
        cut = cut * inside[:, None]
    return cut


def resample(
    pixels: Tensor,
    box: Tensor,
    flip: Tensor,
    size: tuple[int, int],
    interpolation: Interpolation,
    *,
    padding: int = 0,
    padding_mode: PaddingMode = "zero",
) -> Tensor:
    """Resizes one box per image, with antialiasing.

    Args:
        pixels: (n, C, H, W) uint8 or float32.
        box: (n, 4) float of top, left, height, width, inside the padded image.
        flip: (n,) bool, whether the result is mirrored.
        size: height and width of the result.
        interpolation: the kernel.
        padding: pixels that are added on every side first.
        padding_mode: what they show.

    Shape: (n, C, *size), of the type of the pixels.
    Source: Pillow's Resample.c: kernel widened when the box shrinks, weights cut off at the border
        of the image and made to sum to one, columns first, rounding half up after each pass. From
        version 13 on, Pillow takes rows first where that is less work: the clipping in between
        then differs where a kernel overshoots black or white.
    """
    n, channels, height, width = pixels.shape
    box = box.to(torch.float32)  # as Pillow's
    across, down = (
        _weights(box[:, side], box[:, side + 2], length, out, interpolation, padding, padding_mode)
        for side, length, out in ((1, width, size[1]), (0, height, size[0]))
    )
    across = torch.where(flip[:, None, None], across.flip(1), across)  # (n, w, W)
    flat = pixels.reshape(n, channels * height, width).float()
    narrow = flat @ across.transpose(1, 2)
    if pixels.dtype != torch.uint8:
        return down[:, None] @ narrow.view(n, channels, height, -1)  # (n, C, h, w)
    narrow = _round(narrow).view(n, channels, height, -1)  # (n, C, H, w)
    return _round(down[:, None] @ narrow).to(torch.uint8)  # (n, C, h, w)


def reflect(position: Tensor, length: int) -> Tensor:
    """Mirrors positions outside 0 to ``length - 1`` at the border pixels, which do not repeat."""
    period = max(2 * (length - 1), 1)
    folded = position.remainder(period)
    return torch.minimum(folded, period - folded)


def _weights(  # noqa: PLR0917 -- called in one place
    start: Tensor,
    extent: Tensor,
    length: int,
    out: int,
    interpolation: Interpolation,
    padding: int,
    padding_mode: PaddingMode,
) -> Tensor:
    """Gives the share of every input position in every output position, (n, out, length)."""
    kernel, support = _KERNELS[interpolation]
    device = start.device
    step = (extent / out)[:, None, None]  # (n, 1, 1)
    widening = step.clamp(min=1)
    middle = (torch.arange(out, device=device) + 0.5)[:, None]
    centre = start[:, None, None] + padding + middle * step  # (n, out, 1)
    places = torch.arange(length + 2 * padding, device=device)
    share = kernel((places + 0.5 - centre) / widening)
    # Pillow's window: whole pixels whose centres lie within the kernel's reach, nearly.
    first = (centre - support * widening + 0.5).floor()
    last = (centre + support * widening + 0.5).floor()
    share = share * ((places >= first) & (places < last))
    share = share / share.sum(2, keepdim=True)
    if not padding:
        return share
    source = reflect(places - padding, length)
    if padding_mode == "zero":
        share = share * (source == places - padding)
    fold = source[:, None] == torch.arange(length, device=device)  # (length + 2p, length)
    return share @ fold.to(share.dtype)


def _round(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255)


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


_KERNELS: Final[dict[Interpolation, tuple[Callable[[Tensor], Tensor], float]]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
