"""Batches as a pure function of (recipe, seed, step): no loader has a state to save or restore."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimkit.data.counter import uniform
from mimkit.data.device import ahead, on_all, pinned
from mimkit.data.order import Ends, in_shards
from mimkit.data.pixels.augment import EPOCH_STRIDE, Augment, draw
from mimkit.data.pixels.cut import cut
from mimkit.data.pixels.views import finish
from mimkit.data.source import Source
from mimkit.data.workers import leave_signals_to_parent, loaders
from mimkit.errors import DataError, RecipeError
from mimkit.parts.masker import Masker
from mimkit.parts.records import Batch, Mask, View
from mimkit.recipe.sections import DataSection

_ORDER_STREAM: Final = 102
_MASK_STREAM: Final = 103


def positions(
    num_images: int, batch_size: int, seed: int, step: int, shards: Ends = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tells which images make up a step, and in which pass over the data each occurs.

    The passes follow one another without a gap, each in an order of its own: a batch may hold the
    end of one and the beginning of the next, and no image is dropped.

    Args:
        num_images: of the data set.
        batch_size: images of a step.
        seed: of the run.
        step: which.
        shards: where shards end, if the images lie in some: then they come nearly in the order in
            which they lie.

    Shape: index (batch_size,) and epoch (batch_size,), int64.
    """
    epoch, place = np.divmod(
        np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64), num_images
    )
    index = np.empty_like(place)
    for each in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == each
        if shards:
            index[here] = in_shards(shards, seed, each, place[here])
        else:
            index[here] = _order(num_images, seed, each)[place[here]]
    return index, epoch


@functools.lru_cache(maxsize=4)
def _order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    numbers = np.arange(num_images) + epoch * EPOCH_STRIDE
    return np.argsort(uniform(seed, _ORDER_STREAM, numbers, 1)[:, 0], kind="stable")


@dataclass(frozen=True)
class Cut:
    """A batch as a loader process hands it over: 8-bit pixels, a quarter of what they become.

    Args:
        pixels: view name to (B, C, H, W) uint8.
        color: (B, 3) jitter factors, or None.
        mask: the masks.
        labels: (B,) int64, or None.
        index: (B,) int64.
    """

    pixels: dict[str, Tensor]
    color: Tensor | None
    mask: Mask
    labels: Tensor | None
    index: Tensor

    def pin_memory(self) -> Cut:
        """Lets the copy to the GPU run beside computation; called by the loader."""
        return on_all(self, pinned)


class Batches:
    """The training batches of one process, by step.

    Args:
        source: the images.
        views: what is rendered of each image.
        augment: how images vary.
        masker: draws the masks.
        batch_size: images per step, of all processes together.
        seed: of the run.
        rank: this process's number.
        world_size: number of processes; each gets an equal share of every batch.

    Raises: RecipeError if the batch size cannot be shared equally.
    """

    def __init__(
        self,
        source: Source,
        *,
        views: Sequence[View],
        augment: Augment,
        masker: Masker,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise RecipeError(
                f"[train] batch_size: must be a multiple of the {world_size} processes, but is "
                f"{batch_size}."
            )
        self.source = source
        self.views = tuple(views)
        self.augment = augment
        self.masker = masker
        self.batch_size = batch_size
        self.seed = seed
        share = batch_size // world_size
        self.rows = slice(rank * share, (rank + 1) * share)

    def __getitem__(self, step: int) -> Batch:
        """Builds this process's share of a step."""
        return self.finish(self.cut(step))

    def cut(self, step: int) -> Cut:
        """Does what the processor does best: draws, decodes, crops, masks."""
        source = self.source
        index, epoch = positions(len(source), self.batch_size, self.seed, step, source.shards)
        mask = self.masker.sample(self.batch_size, _generator(self.seed, step))
        index, epoch = index[self.rows], epoch[self.rows]
        number = torch.from_numpy(index)
        draws = draw(self.augment, source.extent(number).numpy(), self.seed, epoch, index)
        return Cut(
            pixels=cut(source, number, self.views, draws, self.augment),
            color=draws.color,
            mask=mask.rows(self.rows.start, self.rows.stop),
            labels=None if source.labels is None else source.labels[number],
            index=number,
        )

    def finish(self, cut: Cut) -> Batch:
        """Does the rest where the pixels are: jitter and normalisation."""
        views = {view.name: finish(cut.pixels[view.name], view, cut.color) for view in self.views}
        return Batch(views, cut.mask, cut.labels, cut.index)


def stream(
    batches: Batches, start: int, stop: int, *, workers: int, device: torch.device
) -> Iterator[Batch]:
    """Gives the batches of steps ``start`` to ``stop``, prepared ahead and sent to a device.

    Raises: DataError if an image can no longer be read.
    """
    pixels = batches.source.pixels
    # Pixels on a GPU cannot be shared with other processes.
    here = pixels is None or pixels.device.type == "cpu"
    loader = DataLoader(
        _Steps(batches),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=min(workers, stop - start) if here else 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # else starting the loader advances the global one
    )
    for cut_batch in ahead(loader, device):
        if isinstance(cut_batch, DataError):
            raise cut_batch
        yield batches.finish(cut_batch)


def default_workers(section: DataSection, source: Source) -> int:
    """Says how many loader processes to start: as the recipe says, or what suits the source."""
    if section.workers is not None:
        return section.workers
    return 0 if source.pixels is not None else loaders()


class _Steps(Dataset[Cut | DataError]):
    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Cut | DataError:
        try:
            return self.batches.cut(step)
        except DataError as error:
            # Handed over, because a loader process that raises adds its traceback to the message.
            return error


def _generator(seed: int, step: int) -> torch.Generator:
    word = uniform(seed, _MASK_STREAM, np.array([step]), 1)[0, 0]
    return torch.Generator().manual_seed(int(word * 2**53))
