"""Crops to train segmentation on: image and mask scaled, cut and mirrored together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mimkit.data.batches import positions
from mimkit.data.device import ahead
from mimkit.data.pixels.views import average, finish
from mimkit.data.source import Source
from mimkit.data.truth.records import IGNORED
from mimkit.data.workers import leave_signals_to_parent
from mimkit.errors import DataError
from mimkit.parts.records import View

_TRIES: Final = 10
"""So many crops are drawn of an image until no class fills too much of one."""
_Pair = tuple[Tensor, Tensor]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes an image, (C, H, W) uint8 or float32, by bilinear interpolation with antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    found: Tensor = v2.functional.resize(image, list(size), antialias=True)
    return found


def short_side(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """Height and width of an image whose shorter side becomes ``side``, if one is given.

    >>> short_side((240, 320), 96)
    (96, 128)
    """
    if side is None:
        return size
    factor = side / min(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


@dataclass(frozen=True)
class Crops(Dataset[_Pair | DataError]):
    """Full batches without end; each is a pure function of its number.

    Args:
        source: the split, which has masks.
        index: (n,) int64, the images of it that are used.
        view: size and normalisation of a crop.
        side: what the shorter side of an image becomes before it is scaled; None: as it is.
        scale: from which factor to which an image is scaled, drawn anew each time.
        most_of_one: a crop is drawn again where one class fills more of it.
        flip: mirror half of the crops.
        distort: change brightness, contrast, saturation and hue of a part of them.
        batch_size: crops of a batch.
        seed: of order and crops.
    """

    source: Source
    index: Tensor
    view: View
    side: int | None
    scale: tuple[float, float]
    most_of_one: float
    flip: bool
    distort: bool
    batch_size: int
    seed: int

    def stream(self, count: int, *, workers: int, device: torch.device) -> Iterator[_Pair]:
        """Gives the first ``count`` batches: images (B, C, h, w) float32, masks (B, h, w) int64.

        Args:
            count: how many batches.
            workers: loader processes, where there is work for them.
            device: where they go.

        Raises: DataError if an image or mask can no longer be read.
        """
        # Pixels on a GPU cannot be shared with other processes, nor cut one by one.
        here = replace(self, source=self.source.to("cpu"))
        loader = DataLoader(
            here,
            batch_size=None,
            sampler=range(count),
            num_workers=min(workers, max(0, count - 1)),
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # else starting the loader advances the global one
        )
        for piece in ahead(loader, device):
            if isinstance(piece, DataError):
                raise piece
            pixels, masks = piece
            yield finish(pixels, self.view, None), masks

    def __getitem__(self, number: int) -> _Pair | DataError:
        place, epoch = positions(len(self.index), self.batch_size, self.seed, number)
        index = self.index[torch.from_numpy(place)].tolist()
        found = []
        with torch.random.fork_rng(devices=[]):
            for image, passes in zip(index, epoch.tolist(), strict=True):
                # That of torch would also note it down for every GPU, with a trace of the stack.
                torch.default_generator.manual_seed(hash((self.seed, image, passes)) % 2**63)
                try:
                    found.append(self._crop(image))
                except DataError as error:
                    # Handed over: a loader process that raises adds its traceback to the message.
                    return error
        images, masks = zip(*found, strict=True)
        return torch.stack(images), torch.stack(masks)

    def _crop(self, index: int) -> _Pair:
        image, mask = read_pair(self.source, index)
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        height, width = short_side((image.shape[1], image.shape[2]), self.side)
        size = max(1, round(height * factor)), max(1, round(width * factor))
        image = resized(image, size)
        mask = v2.functional.resize(
            mask[None], list(size), v2.InterpolationMode.NEAREST_EXACT, antialias=False
        )[0]
        image, mask = self._cut(image, mask)
        if self.flip and torch.rand(()) < 0.5:
            image, mask = image.flip(2), mask.flip(1)
        if self.distort:
            image = _DISTORT(image)
        return image, mask

    def _cut(self, image: Tensor, mask: Tensor) -> _Pair:
        height, width = self.view.image_size
        room = image.shape[1] - height, image.shape[2] - width
        for _ in range(_TRIES):
            top, left = (int(torch.randint(max(0, each) + 1, ())) for each in room)
            piece = mask[top : top + height, left : left + width]
            if _largest_share(piece) <= self.most_of_one:
                break
        image = image[:, top : top + height, left : left + width]
        missing = [0, width - image.shape[2], 0, height - image.shape[1]]  # left right top bottom
        if any(missing):
            full = average(self.view, image.dtype).repeat(1, height, width)
            full[:, : image.shape[1], : image.shape[2]] = image
            image = full
            piece = torch.nn.functional.pad(piece, missing, value=IGNORED)
        return image, piece


def read_pair(source: Source, index: int) -> _Pair:
    """Reads an image, (C, H, W) uint8 or float32, and its mask, (H, W) int64.

    Raises: DataError if one of them is not what it was.
    """
    assert source.masks is not None
    image = source.image(index).tensor()
    mask = torch.from_numpy(source.masks(index))
    if image.shape[1:] != mask.shape:
        raise DataError(
            f"{source.name} {source.split}, image {index}: its mask must have {image.shape[2]} x "
            f"{image.shape[1]} px, as it has, but has {mask.shape[1]} x {mask.shape[0]} px."
        )
    return image, mask


def _largest_share(mask: Tensor) -> float:
    """Which share of the judged pixels the most frequent class has; 1 where none is judged."""
    judged = mask[mask >= 0]
    if not len(judged):
        return 1.0
    return float(torch.bincount(judged).max() / len(judged))


_DISTORT: Final = v2.RandomPhotometricDistort(
    brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.1, 0.1), p=0.5
)
"""Each of the four with one half's probability, as far as the segmentation code of BEiT goes."""
