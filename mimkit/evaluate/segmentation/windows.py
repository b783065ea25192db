"""Judging images of any size by a network that sees windows of one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.data.pixels.views import average, finish
from mimkit.data.source import Source
from mimkit.evaluate.segmentation.crops import read_pair, resized, short_side
from mimkit.parts.records import View

_STRIDE: Final = 2 / 3
"""Share of a window from one to the next: 341 of 512 px in the segmentation code of BEiT."""
_VALUES: Final = 2**26
"""Most logits that are held at once, a quarter of a GiB."""


def places(length: int, window: int) -> list[int]:
    """Says where windows begin along one side, so that they cover it and end within it.

    >>> places(128, 96), places(96, 96), places(50, 96)
    ([0, 32], [0], [0])
    """
    stride = max(1, int(window * _STRIDE))
    count = math.ceil(max(0, length - window) / stride) + 1
    return [max(0, min(number * stride, length - window)) for number in range(count)]


@dataclass(frozen=True)
class Windows:
    """One image, resized, as windows.

    Args:
        pixels: (n, C, h, w) uint8 or float32.
        corners: the top left one of each.
        size: of the resized image.
        mask: (H, W) int64, of the image as it is.
    """

    pixels: Tensor
    corners: Sequence[tuple[int, int]]
    size: tuple[int, int]
    mask: Tensor


def windows_of(source: Source, index: int, view: View, side: int | None) -> Windows:
    """Reads an image and cuts it into windows of the view's size; what lies outside is the mean.

    Raises: DataError if the image or its mask is not what it was.
    """
    image, mask = read_pair(source, index)
    size = short_side((image.shape[1], image.shape[2]), side)
    image = resized(image, size)
    height, width = view.image_size
    missing = max(0, height - size[0]), max(0, width - size[1])
    if any(missing):
        full = average(view, image.dtype).repeat(1, size[0] + missing[0], size[1] + missing[1])
        full[:, : size[0], : size[1]] = image
        image = full
    corners = [(y, x) for y in places(size[0], height) for x in places(size[1], width)]
    pixels = torch.stack([image[:, y : y + height, x : x + width] for y, x in corners])
    return Windows(pixels, corners, size, mask)


def joined(logits: Tensor, windows: Windows) -> Tensor:
    """Averages the logits of overlapping windows and brings them to the image's full size.

    Shape: logits (n, K, h, w) of the windows; (K, H, W).
    """
    height, width = logits.shape[-2:]
    rows = max(windows.size[0], *(y + height for y, _ in windows.corners))
    cols = max(windows.size[1], *(x + width for _, x in windows.corners))
    total = logits.new_zeros(logits.shape[1], rows, cols)
    times = logits.new_zeros(rows, cols)
    for one, (y, x) in zip(logits, windows.corners, strict=True):
        total[:, y : y + height, x : x + width] += one
        times[y : y + height, x : x + width] += 1
    whole = (total / times)[:, : windows.size[0], : windows.size[1]]
    # Masks are never made smaller: small things would vanish from them, and numbers rise or fall.
    full: Tensor = F.interpolate(whole[None], windows.mask.shape, mode="bilinear")[0]
    return full


def predictions(
    network: Callable[[Tensor], Tensor],
    source: Source,
    index: Sequence[int],
    *,
    view: View,
    side: int | None,
    num_classes: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gives for each image its mask and what the network predicts, at full size.

    Args:
        network: gives logits (B, num_classes, h, w) for windows (B, C, h, w).
        source: the split, which has masks.
        index: numbers of images.
        view: size and normalisation of a window.
        side: what the shorter side of an image becomes; None: as it is.
        num_classes: K.
        device: of the network.

    Shape: (H, W) int64 each, on the device.
    Raises: DataError if an image or its mask is not what it was.
    """
    most = max(1, _VALUES // (num_classes * math.prod(view.image_size)))
    waiting: list[Windows] = []
    source = source.to("cpu")

    def done() -> Iterator[tuple[Tensor, Tensor]]:
        pixels = torch.cat([one.pixels for one in waiting])
        logits = torch.cat(
            [
                network(finish(some.to(device), view, None)).float()
                for some in torch.split(pixels, most)
            ]
        )
        counts = [len(one.corners) for one in waiting]
        for one, own in zip(waiting, torch.split(logits, counts), strict=True):
            yield one.mask.to(device), joined(own, one).argmax(0)
        waiting.clear()

    for number in index:
        found = windows_of(source, number, view, side)
        if waiting and sum(len(one.corners) for one in waiting) + len(found.corners) > most:
            yield from done()
        waiting.append(found)
    if waiting:
        yield from done()
