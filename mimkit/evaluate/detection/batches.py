"""Batches for detection: images in one frame, with what they show; pure functions of numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimkit.data.batches import positions
from mimkit.data.device import ahead, on_all, pinned
from mimkit.data.pixels.views import average, finish
from mimkit.data.source import Source
from mimkit.data.truth.records import Objects
from mimkit.data.workers import leave_signals_to_parent
from mimkit.errors import DataError
from mimkit.evaluate.detection.placing import Place, Variation, draw, targets, whole
from mimkit.parts.records import View


@dataclass(frozen=True)
class FrameBatch:
    """Images as the network sees them.

    Args:
        image: normalised on the device; 8-bit before.
        places: of each image.
        index: their numbers.
        targets: of each image what is to be learned; empty where they are judged.

    Shape: image (B, C, H, W), index (B,) int64.
    """

    image: Tensor
    places: tuple[Place, ...]
    index: tuple[int, ...]
    targets: tuple[dict[str, Tensor], ...]

    def pin_memory(self) -> FrameBatch:
        """Lets the copy to the GPU run beside computation; called by the loader."""
        return on_all(self, pinned)


@dataclass(frozen=True)
class Framed(Dataset["FrameBatch | DataError"], ABC):
    """Batches of images by number.

    Args:
        source: the split.
        index: (n,) int64, the images of it that are used.
        view: what the network sees: size, kernel, normalisation.
        batch_size: images of one batch.
    """

    source: Source
    index: Tensor
    view: View
    batch_size: int

    @abstractmethod
    def show(self, number: int) -> FrameBatch:
        """Makes a batch."""

    def framed(self, index: int, place: Place) -> Tensor:
        """Puts an image into the frame; what is left is the mean colour, which becomes zero.

        Shape: (C, H, W) uint8 or float32.
        """
        image = place.image(self.source.image(index), self.view.interpolation)
        frame = average(self.view, image.dtype).expand(-1, *self.view.image_size).clone()
        height, width = place.shape
        frame[:, :height, :width] = image
        return frame

    def sizes(self, index: list[int]) -> list[tuple[int, int]]:
        """Heights and widths of images."""
        return [(int(h), int(w)) for h, w in self.source.extent(torch.tensor(index)).tolist()]

    def __getitem__(self, number: int) -> FrameBatch | DataError:
        try:
            return self.show(number)
        except DataError as error:
            # Handed over, because a loader process that raises adds its traceback to the message.
            return error

    def stream(self, count: int, *, workers: int, device: torch.device) -> Iterator[FrameBatch]:
        """Gives the first ``count`` batches on a device.

        Raises: DataError if an image can no longer be read.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(count),
            num_workers=min(workers, max(0, count - 1)),
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # else starting the loader advances the global one
        )
        for shown in ahead(loader, device):
            if isinstance(shown, DataError):
                raise shown
            image = finish(shown.image, self.view, None)
            yield FrameBatch(image, shown.places, shown.index, shown.targets)


@dataclass(frozen=True)
class Whole(Framed):
    """Each image once and whole, in the given order; the last batch may be smaller."""

    def __len__(self) -> int:
        return math.ceil(len(self.index) / self.batch_size)

    def show(self, number: int) -> FrameBatch:
        """Takes the next images."""
        index = self.index[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        places = [whole(size, self.view.image_size) for size in self.sizes(index)]
        images = [self.framed(*each) for each in zip(index, places, strict=True)]
        return FrameBatch(torch.stack(images), tuple(places), tuple(index), ())


@dataclass(frozen=True)
class Varied(Framed):
    """Full batches without end, every pass in a new order, each image placed anew.

    Args:
        objects: of the split.
        variation: how images vary.
        seed: of order and places.
        masks: whether masks are learned.
    """

    objects: Objects
    variation: Variation
    seed: int
    masks: bool

    def show(self, number: int) -> FrameBatch:
        """Takes the images of a step, in the order of pre-training."""
        order, epochs = positions(len(self.index), self.batch_size, self.seed, number)
        index, frame = self.index[torch.from_numpy(order)].tolist(), self.view.image_size
        sizes = self.sizes(index)
        places = [
            draw(self.variation, size, frame, seed=self.seed, epoch=epoch, index=image)
            for image, size, epoch in zip(index, sizes, epochs.tolist(), strict=True)
        ]
        images = [self.framed(*each) for each in zip(index, places, strict=True)]
        learned = [
            targets(self.objects(image), place, size, frame, masks=self.masks)
            for image, place, size in zip(index, places, sizes, strict=True)
        ]
        return FrameBatch(torch.stack(images), tuple(places), tuple(index), tuple(learned))
