"""Maskers: what is hidden."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mimkit.parts.part import Part
from mimkit.parts.records import Mask


class Masker(Part):
    """Chooses what is hidden. Runs on the CPU, in a data worker.

    >>> class First(Masker):
    ...     def __init__(self, geometry, *, num_masked: int = 1):
    ...         self.grid, self.num_targets = geometry.grid, num_masked
    ...
    ...     def sample(self, batch_size, generator):
    ...         masked = torch.arange(self.grid.num_patches) < self.num_targets
    ...         return Mask.drop(masked.expand(batch_size, -1), self.grid)
    >>> mask = First(Geometry(Grid(2, 2, 4))).sample(1, torch.Generator())
    >>> mask.context.tolist(), mask.target.tolist()
    ([[1, 2, 3]], [[[0]]])

    Attributes:
        ragged: True if counts differ between images, so that padding occurs.
        num_targets: M, or None if it varies from batch to batch.
        hides: True if its masks let hidden patches enter the encoder as mask tokens.
        tunable: options of the constructor that are worth a search, such as ``mask_ratio``, each
            with the least and the largest value to try; where both are int, so is the value.
    """

    ragged: bool = False
    num_targets: int | None = None
    hides: bool = False
    tunable: ClassVar[Mapping[str, tuple[float, float]]] = {}

    @classmethod
    def tuned(cls, options: Mapping[str, Any], values: Mapping[str, float]) -> Mapping[str, Any]:
        """Gives the options with which values of ``tunable`` are tried; by default just these.

        Override it where an option excludes another one.

        Args:
            options: of a recipe, all of the constructor's.
            values: by names of ``tunable``.
        """
        return {**options, **values}

    @abstractmethod
    def sample(self, batch_size: int, generator: torch.Generator) -> Mask:
        """Draws the masks of one batch, from ``generator`` alone.

        Shape: see `Mask`; the first axis is ``batch_size``.
        """

    def mask_of(self, masked: Tensor) -> Mask:
        """Gives the mask that would have been drawn, had just these patches been chosen.

        With it several methods are shown the same hidden region. By default it follows from what
        this masker declares: dropped patches, or mask tokens if it ``hides``; then all patches
        are targets if ``num_targets`` says so, else the masked ones, in one group, not padded.

        Shape: masked (B, N) bool with equally many in every image; the mask as `sample` gives it.
        Raises: RecipeError if this kind of mask does not allow their number.
        """
        grid = self.sample(1, torch.Generator().manual_seed(0)).grid
        if not self.hides:
            return Mask.drop(masked, grid)
        if self.num_targets == grid.num_patches:
            return Mask.replace_predicting_all(masked, grid)
        return Mask.replace(masked, grid)
