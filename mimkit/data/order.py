"""The order of images that lie in shards: random, yet what lies together is read at about one time.

Shards come in a random order, and each image moves by less than a window from where it would come
if the shards were read one after the other.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.counter import uniform
from mimkit.data.pixels.augment import EPOCH_STRIDE

WINDOW: Final = 16_384
"""In images. Shards in which so many lie must be at hand at once, twice over."""
_SHARD_STREAM: Final = 105
_IMAGE_STREAM: Final = 106
Ends = tuple[int, ...]


def in_shards(
    ends: Ends, seed: int, epoch: int, place: NDArray[np.int64], window: int = WINDOW
) -> NDArray[np.int64]:
    """Tells which images come at some places of a pass over the data.

    A function of its arguments: no state is kept from one call to the next, and memory does not
    grow with the number of images.

    Args:
        ends: where each shard ends among the images, ascending.
        seed: of the run.
        epoch: which pass.
        place: (n,) int64, from 0 to the number of images, less one.
        window: in images.

    Shape: (n,) int64.
    """
    block = place // window
    index = np.empty_like(place)
    for each in np.unique(block).tolist():
        here = block == each
        index[here] = _block(ends, seed, epoch, each, window)[place[here] - each * window]
    return index


@functools.lru_cache(maxsize=8)
def _block(ends: Ends, seed: int, epoch: int, block: int, window: int) -> NDArray[np.int64]:
    """The images at the places from ``block * window`` on, ``window`` or those that are left."""
    first, last = block * window, min((block + 1) * window, ends[-1])
    # An image moves by less than a window: those before these can no longer come here.
    start, stop = max(0, first - window), min(ends[-1], last + window)
    position = np.arange(start, stop)
    moved = (
        position + window * uniform(seed, _IMAGE_STREAM, position + epoch * EPOCH_STRIDE, 1)[:, 0]
    )
    position = position[np.argsort(moved, kind="stable")][first - start : last - start]
    begins, sums = _shards(ends, seed, epoch)
    shard = np.searchsorted(sums, position, side="right") - 1
    return begins[shard] + position - sums[shard]


@functools.lru_cache(maxsize=4)
def _shards(ends: Ends, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The shards of a pass, in its order: their first images, and how many come before each."""
    begins = np.array((0, *ends[:-1]), dtype=np.int64)
    number = np.arange(len(ends)) + epoch * EPOCH_STRIDE
    order = np.argsort(uniform(seed, _SHARD_STREAM, number, 1)[:, 0], kind="stable")
    lengths = (np.array(ends, dtype=np.int64) - begins)[order]
    return begins[order], np.cumsum(lengths) - lengths
