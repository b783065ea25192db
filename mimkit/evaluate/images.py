"""Streams of images for evaluation: whole ones to judge on, augmented ones to train on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimkit.data.batches import positions
from mimkit.data.device import ahead
from mimkit.data.pixels.augment import Augment, Draws, draw
from mimkit.data.pixels.cut import cut
from mimkit.data.pixels.views import finish
from mimkit.data.source import Source
from mimkit.data.workers import leave_signals_to_parent
from mimkit.errors import DataError
from mimkit.evaluate.randaugment import RandAugment
from mimkit.parts.records import View

Piece = tuple[Tensor, dict[str, Tensor], Tensor | None]


@dataclass(frozen=True)
class Images(Dataset[Piece | DataError], ABC):
    """Batches of images by number; each is a pure function of its number.

    Args:
        source: the split.
        index: (n,) int64, the images of it that are used.
        views: what is rendered of each.
        batch_size: images of one batch.
    """

    source: Source
    index: Tensor
    views: tuple[View, ...]
    batch_size: int

    @abstractmethod
    def choose(self, number: int) -> tuple[Tensor, NDArray[np.int64], Draws]:
        """Says which images make up a batch, in which pass each is, and what was drawn for it."""

    @property
    def augment(self) -> Augment:
        """How the images vary; by default not at all."""
        return Augment.none()

    @property
    def laborious(self) -> bool:
        """Whether a batch costs so much that loader processes are worth it."""
        return self.source.pixels is None

    def retouch(
        self, pixels: Tensor, view: View, index: Tensor, epoch: NDArray[np.int64]
    ) -> Tensor:
        """Changes the cut images, (n, C, H, W) uint8; by default not at all."""
        return pixels

    def __getitem__(self, number: int) -> Piece | DataError:
        index, epoch, draws = self.choose(number)
        try:
            pixels = cut(self.source, index, self.views, draws, self.augment)
        except DataError as error:
            # Handed over, because a loader process that raises adds its traceback to the message.
            return error
        for view in self.views:
            pixels[view.name] = self.retouch(pixels[view.name], view, index, epoch)
        return index, pixels, draws.color

    def stream(
        self, count: int, *, workers: int, device: torch.device
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Gives the first ``count`` batches: image numbers (B,) and views (B, C, H, W).

        Args:
            count: how many batches.
            workers: loader processes, where there is work for them.
            device: where the views go; the numbers stay on the CPU.

        Raises: DataError if an image can no longer be read.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(count),
            # A single batch is here before a process has started.
            num_workers=min(workers, max(0, count - 1)) if self.laborious else 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # else starting the loader advances the global one
        )
        # As arrays the numbers stay on the CPU.
        pieces = (p if isinstance(p, DataError) else (p[0].numpy(), *p[1:]) for p in loader)
        for piece in ahead(pieces, device):
            if isinstance(piece, DataError):
                raise piece
            index, pixels, color = piece
            views = {view.name: finish(pixels[view.name], view, color) for view in self.views}
            yield torch.from_numpy(index), views


@dataclass(frozen=True)
class WholeImages(Images):
    """Each image once, in the given order, not augmented; the last batch may be smaller."""

    def __len__(self) -> int:
        return math.ceil(len(self.index) / self.batch_size)

    def choose(self, number: int) -> tuple[Tensor, NDArray[np.int64], Draws]:
        """Takes the next images."""
        index = self.index[number * self.batch_size : (number + 1) * self.batch_size]
        nothing = np.zeros(len(index), dtype=np.int64)
        sizes = self.source.extent(index).numpy()
        return index, nothing, draw(self.augment, sizes, 0, nothing, nothing)


@dataclass(frozen=True)
class Renderings(WholeImages):
    """Each image once, in the given order, under one draw of an augmentation.

    Args:
        variation: how the images vary.
        seed: of the draws.
        number: which of the many renderings.
    """

    variation: Augment
    seed: int
    number: int

    @property
    def augment(self) -> Augment:
        """How the images vary."""
        return self.variation

    def choose(self, number: int) -> tuple[Tensor, NDArray[np.int64], Draws]:
        """Takes the next images, as a function of them, the seed and the rendering alone."""
        index, epoch, _ = super().choose(number)
        epoch = epoch + self.number
        sizes = self.source.extent(index).numpy()
        return index, epoch, draw(self.augment, sizes, self.seed, epoch, index.numpy())


@dataclass(frozen=True)
class TrainingImages(Images):
    """Full batches without end, every pass in a new order, crops and flips drawn anew.

    Args:
        variation: how the images vary.
        seed: of order and variation.
        rand_augment: what is done to each cut image; None for nothing.
    """

    variation: Augment
    seed: int
    rand_augment: RandAugment | None = None

    @property
    def augment(self) -> Augment:
        """How the images vary."""
        return self.variation

    @property
    def laborious(self) -> bool:
        """Whether a batch costs so much that loader processes are worth it."""
        pixels = self.source.pixels
        # Pixels on a GPU cannot be shared with other processes.
        return pixels is None or (self.rand_augment is not None and not pixels.is_cuda)

    def retouch(
        self, pixels: Tensor, view: View, index: Tensor, epoch: NDArray[np.int64]
    ) -> Tensor:
        """Augments each image by its number and pass."""
        if self.rand_augment is None:
            return pixels
        return self.rand_augment(pixels, view, self.seed, epoch, index.numpy())

    def choose(self, number: int) -> tuple[Tensor, NDArray[np.int64], Draws]:
        """Takes the images of a step, as pre-training does."""
        place, epoch = positions(len(self.index), self.batch_size, self.seed, number)
        index = self.index[torch.from_numpy(place)]
        sizes = self.source.extent(index).numpy()
        return index, epoch, draw(self.augment, sizes, self.seed, epoch, index.numpy())


def evenly_spaced(source: Source, num_images: int) -> Tensor:
    """Chooses up to ``num_images`` of a split; not the first, for sets often come sorted by class.

    Shape: (n,) int64, ascending.
    """
    available = len(source)
    count = min(num_images, available)
    return torch.arange(count) * available // count
