"""What dense tasks, such as segmentation and detection, need of an encoder: maps of features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from mimkit.errors import RecipeError
from mimkit.parts.part import Module


@dataclass(frozen=True)
class Level:
    """One map of features.

    >>> Level(channels=768, stride=16)
    Level(channels=768, stride=16)

    Args:
        channels: its width.
        stride: pixels of the image per cell, from top to bottom as from left to right.
    """

    channels: int
    stride: int


class DenseBackbone(Module, ABC):
    """The network that segmentation or detection stands on, for images of one size.

    >>> class Means(DenseBackbone):
    ...     levels = (Level(3, 4), Level(3, 8))
    ...     last = levels[-1]
    ...
    ...     def forward(self, image):
    ...         return tuple(torch.nn.functional.avg_pool2d(image, x.stride) for x in self.levels)
    ...
    ...     def features(self, image):
    ...         return self(image)[-1]
    ...
    ...     def layer_groups(self):
    ...         return []
    >>> [tuple(each.shape) for each in Means()(torch.zeros(2, 3, 16, 24))]
    [(2, 3, 4, 6), (2, 3, 2, 3)]

    Attributes:
        levels: of the maps that `forward` gives, from the first layer to the last.
        last: of the map that `features` gives.
    """

    levels: tuple[Level, ...]
    last: Level

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Gives the maps of all levels as they leave their blocks, for a head that is trained.

        Shape: (B, C, H, W) to (B, channels, H / stride, W / stride) for each level.
        """

    @abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """Gives what a frozen probe reads: `Encoder.features`' patches, each in its place.

        It is what comes after the encoder's closing norm, where it has one.

        Shape: (B, C, H, W) to (B, channels, H / stride, W / stride) of ``last``.
        """

    @abstractmethod
    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists the parameters from input to output, for layer-wise learning-rate decay.

        They are grouped as in `Backbone.layer_groups`. What `forward` does not use, such as a
        closing norm that only `features` reads, is not trained and not listed.
        """

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth: ``rate`` for the last block, rising linearly from 0.

        Raises: RecipeError if this network has none, which is the default.
        """
        raise RecipeError(
            f"{type(self).__name__} has no stochastic depth, so drop_path must be 0, but is {rate}."
        )


def dense_blocks(depth: int) -> tuple[int, int, int, int]:
    """Says after which blocks of a plain transformer the four maps of a dense task are taken.

    >>> dense_blocks(12), dense_blocks(24)
    ((3, 5, 7, 11), (7, 11, 15, 23))

    Args:
        depth: number of blocks. Where they are few, one may be taken twice.

    Returns: numbers of blocks, counted from 0: after a third, half, two thirds, and all of them.
    Source: the segmentation code of BEiT and CAE, which lists them for 12 and 24 blocks.
    """
    counts = (round(depth / 3), round(depth / 2), round(depth * 2 / 3), depth)
    a_third, half, two_thirds, last = (max(count, 1) - 1 for count in counts)
    return a_third, half, two_thirds, last
