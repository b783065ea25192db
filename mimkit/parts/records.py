"""The records that flow through one training step.

Letters, here and in every docstring: B batch, C channels, H W pixels, N patches of the grid,
S patches that enter the encoder, R prefix tokens (cls), D ``embed_dim``, G target groups per
image, M targets per group, K width of one prediction. Position ``i`` of a grid is
``row * cols + col``; positions ascend in each row of an index tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.errors import RecipeError

Interpolation = Literal["bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Grid:
    """How an image is cut into patches.

    >>> grid = Grid(rows=2, cols=3, patch_size=4)
    >>> grid.num_patches, grid.image_size
    (6, (8, 12))

    Args:
        rows: patches from top to bottom.
        cols: patches from left to right.
        patch_size: side of one square patch, in pixels.
    """

    rows: int
    cols: int
    patch_size: int

    @property
    def num_patches(self) -> int:
        """N, the number of patches of one image."""
        return self.rows * self.cols

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        return self.rows * self.patch_size, self.cols * self.patch_size


@dataclass(frozen=True)
class View:
    """One rendering of an image that a part asks the data for.

    All views of an image share one crop box, flip and colour jitter.

    >>> View("tokens", (112, 112), interpolation="lanczos").image_size
    (112, 112)

    Args:
        name: key in ``Batch.views``; ``"image"`` is the encoder's.
        image_size: height and width in pixels.
        mean: per-channel mean that is subtracted from pixels in [0, 1].
        std: per-channel divisor after that.
        interpolation: the resampling kernel.
    """

    name: str
    image_size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class Mask:
    """What the encoder sees, what is hidden from it, what must be predicted.

    >>> mask = Mask.drop(torch.tensor([[True, False, False, True]]), Grid(2, 2, 4))
    >>> mask.context.tolist(), mask.target.tolist()
    ([[1, 2]], [[[0, 3]]])

    Args:
        grid: the grid that all positions refer to.
        context: (B, S) int64, the positions whose patches enter the encoder.
        hidden: (B, S) bool, those of them that are shown as a mask token.
        target: (B, G, M) int64, the positions to predict.
        valid: (B, G, M) bool, False where ``target`` is padding.
    """

    grid: Grid
    context: Tensor
    hidden: Tensor
    target: Tensor
    valid: Tensor

    @classmethod
    def drop(cls, masked: Tensor, grid: Grid) -> Mask:
        """Masked patches never enter the encoder, and are the target.

        Shape: masked (B, N) bool; context (B, N - M), hidden all False, target (B, 1, M).
        Raises: RecipeError if the images of the batch mask different numbers of patches.
        """
        chosen = masked.numpy()
        counts = chosen.sum(1)
        if (counts != counts[0]).any():
            raise RecipeError(
                "Mask.drop: every image must mask the same number of patches, but the counts "
                f"range from {counts.min()} to {counts.max()}. Use Mask.replace, or a "
                "masker with exact counts."
            )
        (batch_size, num_patches), num_targets = chosen.shape, int(counts[0])
        positions = _positions(batch_size, num_patches)
        context = positions[~chosen].reshape(batch_size, num_patches - num_targets)
        target = positions[chosen].reshape(batch_size, 1, num_targets)
        hidden, valid = np.zeros(context.shape, np.bool_), np.ones(target.shape, np.bool_)
        arrays = context, hidden, target, valid
        return cls(grid, *map(torch.from_numpy, arrays))

    @classmethod
    def replace(cls, masked: Tensor, grid: Grid, num_targets: int | None = None) -> Mask:
        """The whole grid enters the encoder, masked patches as mask tokens; they are the target.

        Args:
            masked: (B, N) bool.
            grid: the grid.
            num_targets: M, to which shorter rows are padded with position 0 and ``valid`` False;
                None takes the largest count of the batch.

        Shape: context (B, N), hidden (B, N), target and valid (B, 1, M).
        Raises: RecipeError if an image masks nothing, or more than ``num_targets`` patches.
        """
        chosen = masked.numpy()
        counts = chosen.sum(1)
        largest = int(counts.max())
        num_targets = largest if num_targets is None else num_targets
        if largest > num_targets or counts.min() == 0:
            raise RecipeError(
                f"Mask.replace: every image must mask 1 to {num_targets} patches, but the counts "
                f"range from {counts.min()} to {largest}."
            )
        positions = _positions(*chosen.shape)
        valid = np.arange(num_targets) < counts[:, None]
        target = np.zeros(valid.shape, np.int64)
        target[valid] = positions[chosen]
        arrays = positions, chosen, target[:, None], valid[:, None]
        return cls(grid, *map(torch.from_numpy, arrays))

    @classmethod
    def replace_predicting_all(cls, masked: Tensor, grid: Grid) -> Mask:
        """As `replace`, but every patch of the grid is a target, masked or not.

        Shape: masked (B, N) bool; context (B, N), hidden (B, N), target and valid (B, 1, N).
        """
        positions = _positions(*masked.shape)
        target = positions[:, None]
        arrays = positions, masked.numpy(), target, np.ones(target.shape, np.bool_)
        return cls(grid, *map(torch.from_numpy, arrays))

    def to(self, device: torch.device, non_blocking: bool = True) -> Mask:
        """Returns the same mask on another device."""
        return dataclasses.replace(
            self,
            context=self.context.to(device, non_blocking=non_blocking),
            hidden=self.hidden.to(device, non_blocking=non_blocking),
            target=self.target.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
        )

    def rows(self, start: int, stop: int) -> Mask:
        """Returns the masks of images ``start`` to ``stop`` of the batch."""
        return dataclasses.replace(
            self,
            context=self.context[start:stop],
            hidden=self.hidden[start:stop],
            target=self.target[start:stop],
            valid=self.valid[start:stop],
        )


def _positions(batch_size: int, num_patches: int) -> NDArray[np.int64]:
    # Masks are made in numpy: torch would start threads, for which loader processes have no cores.
    # To select by booleans takes a tenth of the time of sorting them.
    return np.tile(np.arange(num_patches), (batch_size, 1))


@dataclass(frozen=True)
class Batch:
    """One step's input.

    >>> mask = Mask.drop(torch.tensor([[True, False, False, True]]), Grid(2, 2, 4))
    >>> Batch({"image": torch.zeros(1, 3, 8, 8)}, mask, None, torch.arange(1)).image.shape
    torch.Size([1, 3, 8, 8])

    Args:
        views: name to (B, C, H, W) float32, normalised as the `View` of that name asks.
        mask: the masks of these images.
        labels: (B,) int64, or None where the data set has none.
        index: (B,) int64, the images' numbers in the data set.
    """

    views: Mapping[str, Tensor]
    mask: Mask
    labels: Tensor | None
    index: Tensor

    @property
    def image(self) -> Tensor:
        """The encoder's view, (B, C, H, W)."""
        return self.views["image"]

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """Returns the same batch on another device."""
        labels = self.labels
        return Batch(
            views={k: view.to(device, non_blocking=non_blocking) for k, view in self.views.items()},
            mask=self.mask.to(device, non_blocking),
            labels=None if labels is None else labels.to(device, non_blocking=non_blocking),
            index=self.index.to(device, non_blocking=non_blocking),
        )

    def split(self, pieces: int) -> list[Batch]:
        """Cuts the batch into equal pieces of images; ``pieces`` divides its size."""
        if pieces == 1:
            return [self]
        size = self.index.shape[0] // pieces
        return [self.rows(start, start + size) for start in range(0, size * pieces, size)]

    def rows(self, start: int, stop: int) -> Batch:
        """Returns images ``start`` to ``stop`` of the batch, which share its memory."""
        return Batch(
            views={name: view[start:stop] for name, view in self.views.items()},
            mask=self.mask.rows(start, stop),
            labels=None if self.labels is None else self.labels[start:stop],
            index=self.index[start:stop],
        )


@dataclass(frozen=True)
class Tokens:
    """What an encoder gives.

    >>> patches = torch.zeros(1, 4, 16)
    >>> Tokens(patches, prefix=patches[:, :0], index=torch.arange(4)[None]).prefix.shape
    torch.Size([1, 0, 16])

    Args:
        patches: (B, S, D), one vector per patch that entered.
        prefix: (B, R, D), tokens that stand for no patch (cls); R may be 0.
        index: (B, S) int64, the positions of ``patches``.
    """

    patches: Tensor
    prefix: Tensor
    index: Tensor


@dataclass(frozen=True)
class Width:
    """What one prediction must be: scores over ``size`` classes, or a vector of ``size``.

    >>> Width("class", 8192)
    Width(kind='class', size=8192)
    """

    kind: Literal["class", "vector"]
    size: int


@dataclass(frozen=True)
class Geometry:
    """All that a part may know of the rest; settled step by step while a recipe is built.

    >>> Geometry(Grid(14, 14, 16), embed_dim=768).channels
    3

    Args:
        grid: the encoder's patch grid.
        channels: C, of every view.
        embed_dim: D, the encoder's width; 0 while masker and encoder are being built.
        outputs: prediction name to the `Width` that the head must give; empty until the head.
    """

    grid: Grid
    channels: int = 3
    embed_dim: int = 0
    outputs: Mapping[str, Width] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """How a part shows a prediction to people.

    >>> Picture("predicted pixels", torch.zeros(1, 3, 8, 8)).title
    'predicted pixels'

    Args:
        title: what the picture shows, in a few words.
        image: (B, C, H, W) float32 in the normalisation of ``view``.
        correct: (B, G, M) bool or None: targets that are framed as right or wrong.
        view: the `View` that ``image`` is a rendering of; None for the encoder's.
    """

    title: str
    image: Tensor
    correct: Tensor | None = None
    view: View | None = None
