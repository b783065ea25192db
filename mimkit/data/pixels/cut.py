"""Cutting and resizing: pixels that are at hand all at once, files one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mimkit.data.device import send
from mimkit.data.pixels.augment import Augment, Draws
from mimkit.data.pixels.raster import Raster
from mimkit.data.pixels.resample import crop, resample
from mimkit.parts.records import View


class Stored(Protocol):
    """Images as they are stored; `mimkit.data.source.Source` is one."""

    @property
    def pixels(self) -> Tensor | None:
        """(N, C, H, W) uint8 or float32 if all are decoded and at hand, else None."""

    def extent(self, index: Tensor) -> Tensor:
        """Tells heights and widths, (n, 2) int32, for (n,) int64 on the CPU."""

    def image(self, index: int, shrink: int = 1) -> Raster:
        """Returns an image, at its full size, or up to ``shrink`` times smaller."""


def cut(
    source: Stored, index: Tensor, views: Sequence[View], draws: Draws, augment: Augment
) -> dict[str, Tensor]:
    """Cuts and resizes the images of several views, each image decoded once.

    Shape: each (n, C, H, W) uint8, or float32 in [0, 1] or a little outside.
    """
    if source.pixels is None:
        boxes = torch.stack([_fit(draws.box, view, augment) for view in views], 1)  # (n, views, 4)
        heights = source.extent(index.cpu())[:, 0].tolist()
        rows = zip(index.tolist(), heights, boxes.tolist(), draws.flip.tolist(), strict=True)
        images = [
            _cut_file(
                source,
                number,
                height,
                list(zip(views, fitted, strict=True)),
                flip=flip,
                augment=augment,
            )
            for number, height, fitted, flip in rows
        ]
        return {view.name: torch.stack([image[view.name] for image in images]) for view in views}
    device = source.pixels.device
    pixels, draws = source.pixels[send(index, device)], draws.to(device)
    return {view.name: _cut_pixels(pixels, view, draws, augment) for view in views}


def _cut_pixels(pixels: Tensor, view: View, draws: Draws, augment: Augment) -> Tensor:
    size = (pixels.shape[2], pixels.shape[3])
    if augment.crop != "resized" and view.image_size == size:
        return crop(pixels, draws.box[:, :2], draws.flip, size, augment.padding_mode)
    padding = augment.padding if augment.crop == "pad" else 0
    return resample(
        pixels,
        _fit(draws.box, view, augment),
        draws.flip,
        view.image_size,
        view.interpolation,
        padding=padding,
        padding_mode=augment.padding_mode,
    )


def _cut_file(
    source: Stored,
    index: int,
    stored_height: int,
    boxes: Sequence[tuple[View, list[float]]],
    *,
    flip: bool,
    augment: Augment,
) -> dict[str, Tensor]:
    padding = augment.padding if augment.crop == "pad" else 0
    image = source.image(index, shrink=1 if padding else _shrink(boxes))
    times = round(stored_height / image.height)
    if padding:
        image = image.padded(padding, augment.padding_mode)
    cuts = {}
    for view, box in boxes:
        top, left, height, width = (length / times for length in box)
        top, left = top + padding, left + padding
        inside = (left, top, min(left + width, image.width), min(top + height, image.height))
        small = image.resized(view.image_size, view.interpolation, inside)
        cuts[view.name] = (small.mirrored() if flip else small).tensor()
    return cuts


def _shrink(boxes: Sequence[tuple[View, list[float]]]) -> int:
    """Says how many times smaller an image may be decoded so that twice the views' pixels stay."""
    spare = [
        length / needed
        for view, box in boxes
        for length, needed in zip(box[2:], view.image_size, strict=True)
    ]
    return max(1, int(min(spare) / 2))


def _fit(box: Tensor, view: View, augment: Augment) -> Tensor:
    """Narrows boxes that keep the image's aspect to the view's, about their centre."""
    if augment.crop == "resized":
        return box
    aspect = view.image_size[1] / view.image_size[0]
    corner, extent = box[:, :2], box[:, 2:]
    height, width = extent.unbind(1)
    inner = torch.stack([(width / aspect).minimum(height), (height * aspect).minimum(width)], 1)
    return torch.cat([corner + (extent - inner) / 2, inner], 1)
