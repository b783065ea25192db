"""Maskers that several methods share."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange, repeat
from torch import Generator

from mimkit.errors import RecipeError
from mimkit.parts.bounds import Ratio, Size
from mimkit.parts.masker import Masker
from mimkit.parts.records import Geometry, Mask


class RandomMasker(Masker):
    """Masks a fixed share of the patches, uniformly and for every image anew.

    Args:
        geometry: the patch grid.
        mask_ratio: share of the patches that is masked and predicted; rounded down to whole units.
        mode: "drop": masked patches never enter the encoder; "replace": as mask tokens.
        unit: side, in patches, of the squares that are masked as a whole.
        predict: the masked patches, or all patches of the image, which needs mode "replace".

    Raises: RecipeError if ``unit`` does not divide the grid, if the ratio masks nothing or all, or
        if dropped patches leave no token to predict all from.
    Source: MAE, arXiv 2111.06377, section 3 (drop); SimMIM, arXiv 2111.09886, section 3.2
        (replace, units of 32 px); predicting all: BEiT, arXiv 2106.08254, section 3.3.
        SimMIM's code rounds the number of masked units up.
    """

    miniature: ClassVar[Mapping[str, Any]] = {"mask_ratio": 0.5}
    tunable: ClassVar[Mapping[str, tuple[float, float]]] = {"mask_ratio": (0.1, 0.9)}

    def __init__(
        self,
        geometry: Geometry,
        *,
        mask_ratio: Ratio,
        mode: Literal["drop", "replace"] = "drop",
        unit: Size = 1,
        predict: Literal["masked", "all"] = "masked",
    ) -> None:
        self.grid = geometry.grid
        self.mask_ratio = mask_ratio
        self.mode = mode
        self.unit = unit
        rows, cols = self.grid.rows, self.grid.cols
        if rows % unit or cols % unit:
            raise RecipeError(
                f"masker 'random', unit: must divide the grid of {rows} x {cols} patches, "
                f"but is {unit}."
            )
        self.num_units = self.grid.num_patches // unit**2
        # Without the rounding, 0.29 of 100 patches would be 28.
        self.num_masked = math.floor(round(mask_ratio * self.num_units, 6))
        if not 0 < self.num_masked < self.num_units:
            raise RecipeError(
                "masker 'random', mask_ratio: must mask at least one and not all of "
                f"{self.num_units} units, but {mask_ratio} of them is {self.num_masked}."
            )
        self.hides = mode == "replace"
        if predict == "all" and not self.hides:
            raise RecipeError(
                "masker 'random', predict: 'all' needs mode = 'replace', but mode is 'drop'."
            )
        self.predict = predict
        num_masked = self.num_masked * unit**2
        self.num_targets = num_masked if predict == "masked" else self.grid.num_patches

    def sample(self, batch_size: int, generator: Generator) -> Mask:
        """Ranks the units by random numbers and masks the lowest.

        Shape: drop: context (B, N - M), target (B, 1, M); replace: context (B, N).
        """
        noise = torch.rand(batch_size, self.num_units, generator=generator)
        ranks = noise.argsort(dim=1).argsort(dim=1)
        units = rearrange(
            ranks < self.num_masked,
            "b (rows cols) -> b rows cols",
            cols=self.grid.cols // self.unit,
        )
        masked = repeat(
            units, "b rows cols -> b (rows p) (cols q)", p=self.unit, q=self.unit
        ).flatten(1)  # (B, N)
        if self.predict == "all":
            return Mask.replace_predicting_all(masked, self.grid)
        if self.hides:
            return Mask.replace(masked, self.grid, self.num_targets)
        return Mask.drop(masked, self.grid)
