"""Blockwise masking (BEiT, arXiv 2106.08254): rectangles until a share of the grid is covered."""

import functools
import math
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from mimkit import Geometry, Mask, Masker, RecipeError

Reals = NDArray[np.float32]
Integers = NDArray[np.int32]
Booleans = NDArray[np.bool_]

ATTEMPTS: Final = 10
"""Rectangles that are tried in one round, of which the first that fits is masked."""
CHUNK: Final = 256
"""Images that are masked at once: more would leave the processor's cache."""
SPARE_ROUNDS: Final = 100
"""Rounds beyond one for each patch, after which missing patches are drawn singly."""


class BlockMasker(Masker):
    """Masks random rectangles until enough patches are masked; most lie about the centre.

    A round tries ten rectangles and masks the first that is smaller than the grid in both
    directions and adds at least one patch but none too many. The first round without such a
    rectangle ends the mask, short of ``num_targets`` in every third image at the published
    settings. With ``exact`` the rounds go on until the count is reached.

    No mask is empty: as long as nothing is masked, the rounds go on in any case. Should
    ``num_targets`` + 100 rounds not do, what still lacks (with ``exact`` up to ``num_targets``,
    else up to one) is drawn patch by patch, every unmasked one being equally likely. At the
    published settings that does not happen.

    Args:
        geometry: the patch grid.
        mask_ratio: share of the patches to mask, rounded down to patches.
        num_targets: how many patches to mask, instead of ``mask_ratio``.
        mode: "replace": masked patches enter the encoder as mask tokens; "drop": they do not.
        min_block: least area of a rectangle, in patches, before rounding to whole sides; where
            fewer lack, it is the largest. None for 16 of 196 patches, but at least 2.
        max_block: largest area of a rectangle, in patches; None for ``num_targets``.
        aspect: lowest and highest height through width of a rectangle, log-uniform between.
        exact: mask ``num_targets`` patches of every image, not at most as many.
        predict: the masked patches, or all patches of the image, which needs mode "replace".

    Raises: RecipeError if the options contradict each other, mask nothing or all, or allow no
        rectangle that is smaller than the grid.
    Source: BEiT, arXiv 2106.08254, section 2.3, as its released code has it: the paper's
        Algorithm 1 draws the aspect uniformly and may exceed the count by the last rectangle.
        ``exact``: CAE, arXiv 2202.03026, as its released code has it, but with an end to the
        rounds. Both have 14 x 14 patches and ``min_block`` 16; scaling it with the grid, and that
        no mask is empty, are ours (16 on 4 x 4 patches leaves many masks empty).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        mask_ratio: float | None = None,
        num_targets: int | None = None,
        mode: Literal["replace", "drop"] = "replace",
        min_block: int | None = None,
        max_block: int | None = None,
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        exact: bool = False,
        predict: Literal["masked", "all"] = "masked",
    ) -> None:
        self.grid = geometry.grid
        num_patches = self.grid.num_patches
        if mode == "drop" and not exact:
            raise RecipeError(
                "masker 'block', mode: 'drop' must mask equally many patches of every image, but "
                "without exact the numbers differ. Set exact = true, or mode = 'replace'."
            )
        if predict == "all" and mode == "drop":
            raise RecipeError(
                "masker 'block', predict: 'all' needs mode = 'replace', but mode is 'drop'."
            )
        self.predict = predict
        self.num_masked = _num_masked(num_patches, mask_ratio, num_targets)
        self.num_targets = self.num_masked if predict == "masked" else num_patches
        self.mode = mode
        self.max_block = self.num_masked if max_block is None else max_block
        largest = min(self.max_block, self.num_masked)
        if min_block is None:
            min_block = min(max(2, round(num_patches * 16 / 196)), largest)
        self.min_block = min_block
        self.aspect = aspect
        self.exact = exact
        self.ragged = not exact and predict == "masked"
        self.hides = mode == "replace"
        if not 0 < min_block <= largest:
            raise RecipeError(
                "masker 'block', min_block: must be at least 1 and at most max_block and "
                f"num_targets ({largest} patches), but is {min_block}."
            )
        if not 0 < aspect[0] <= aspect[1]:
            raise RecipeError(
                "masker 'block', aspect: must be two ascending numbers above 0, but is "
                f"{list(aspect)}."
            )
        self._refuse_if_nothing_fits(largest)

    def sample(self, batch_size: int, generator: Generator) -> Mask:
        """Masks rectangle after rectangle, in all images at once.

        Shape: with M = ``num_targets``, target (B, 1, M), padded unless ``exact``; context (B, N)
            for mode "replace", (B, N - M) for "drop".
        """
        sizes = [min(CHUNK, batch_size - start) for start in range(0, batch_size, CHUNK)]
        masked = torch.cat([self._cover(size, generator) for size in sizes])
        if self.predict == "all":
            return Mask.replace_predicting_all(masked, self.grid)
        if self.hides:
            return Mask.replace(masked, self.grid, self.num_targets)
        return Mask.drop(masked, self.grid)

    def _cover(self, num_images: int, generator: Generator) -> Tensor:
        """Says which patches are masked.

        Shape: (n, N) bool. In here images are the last axis, where numpy is fastest.
        """
        rows, cols = self.grid.rows, self.grid.cols
        needed = self.num_masked if self.exact else 1
        finished = np.zeros((rows, cols, num_images), dtype=np.bool_)
        masked, counts = finished, np.zeros(num_images, dtype=np.int32)
        images = np.arange(num_images)
        for _ in range(self.num_masked + SPARE_ROUNDS):
            masked, added = self._round(masked, counts, generator)
            counts = counts + added
            goes_on = (counts < self.num_masked) & ((added > 0) | (counts < needed))
            if goes_on.all():
                continue
            finished[:, :, images[~goes_on]] = masked[:, :, ~goes_on]
            masked, counts, images = masked[:, :, goes_on], counts[goes_on], images[goes_on]
            if not len(images):
                break
        else:
            finished[:, :, images] = _top_up(masked, needed - counts, generator)
        return torch.from_numpy(finished.reshape(-1, num_images).T.copy())

    def _round(
        self, masked: Booleans, counts: Integers, generator: Generator
    ) -> tuple[Booleans, Integers]:
        """Masks the first fitting rectangle of each image; also says how many patches that adds.

        Shape: masked (rows, cols, n), counts and added (n,).
        """
        rows, cols, num_images = masked.shape
        # The attempts of a round do not depend on each other, so all are made at once.
        u: Reals = torch.rand(4, ATTEMPTS, num_images, generator=generator).numpy()
        missing = np.minimum(self.num_masked - counts, self.max_block)
        height, width = self._extent(missing, u[0], u[1])  # (attempts, n)
        inside = (height < rows) & (width < cols)
        height, width = height * inside, width * inside
        top = (u[2] * (rows + 1 - height)).astype(np.int32)
        left = (u[3] * (cols + 1 - width)).astype(np.int32)
        added = height * width - _count(masked, top, left, height, width)
        fits = (added > 0) & (added <= missing)
        first = fits.argmax(0), np.arange(num_images)
        success, top, left = fits[first], top[first], left[first]
        row, col = np.arange(rows)[:, None], np.arange(cols)[:, None]
        in_rows = success & (row >= top) & (row < top + height[first])  # (rows, n)
        in_cols = (col >= left) & (col < left + width[first])  # (cols, n)
        return masked | (in_rows[:, None] & in_cols), added[first] * success

    def _extent(
        self, largest: Integers, u_area: Reals, u_aspect: Reals
    ) -> tuple[Integers, Integers]:
        """Gives whole heights and widths for numbers in [0, 1]."""
        side = np.sqrt(self.min_block + (largest - self.min_block).astype(np.float32) * u_area)
        low, high = math.log(self.aspect[0]) / 2, math.log(self.aspect[1]) / 2
        stretch = np.exp(low + (high - low) * u_aspect)
        return np.rint(side * stretch).astype(np.int32), np.rint(side / stretch).astype(np.int32)

    def _refuse_if_nothing_fits(self, largest: int) -> None:
        u = np.linspace(0, 1, 65, dtype=np.float32)
        height, width = self._extent(np.array(largest, dtype=np.int32), u[:, None], u)
        fits = (height > 0) & (height < self.grid.rows) & (width > 0) & (width < self.grid.cols)
        if not fits.any():
            raise RecipeError(
                f"masker 'block': rectangles must be smaller than the grid of {self.grid.rows} x "
                f"{self.grid.cols} patches in both directions, but none of {self.min_block} to "
                f"{largest} patches and aspect {self.aspect[0]:.3g} to {self.aspect[1]:.3g} is. "
                "Change min_block or aspect, or use masker 'random'."
            )


def _num_masked(num_patches: int, mask_ratio: float | None, num_targets: int | None) -> int:
    if mask_ratio is not None and num_targets is None:
        # Without the rounding, 0.29 of 100 patches would be 28.
        num_targets = math.floor(round(mask_ratio * num_patches, 6))
        key, given = "mask_ratio", f"{mask_ratio} of them is {num_targets}"
    elif num_targets is not None and mask_ratio is None:
        key, given = "num_targets", f"is {num_targets}"
    else:
        raise RecipeError(
            "masker 'block': exactly one of mask_ratio and num_targets must be given, not "
            f"{'neither' if mask_ratio is None else 'both'}."
        )
    if not 0 < num_targets < num_patches:
        raise RecipeError(
            f"masker 'block', {key}: must mask at least one and not all of {num_patches} patches, "
            f"but {given}."
        )
    return num_targets


def _count(
    masked: Booleans, top: Integers, left: Integers, height: Integers, width: Integers
) -> Integers:
    """Counts the masked patches inside rectangles, by a table of sums above and left of a corner.

    Shape: masked (rows, cols, n), the others and the result (attempts, n).
    """
    rows, cols, num_images = masked.shape
    # Products with a triangle of ones: several times faster than cumsum, exact in float32, and too
    # small each to start threads, which would get in the way of other loader processes.
    above = _triangle(rows) @ masked.transpose(1, 0, 2).astype(np.float32)  # (cols, rows + 1, n)
    sums = (_triangle(cols) @ above.transpose(1, 0, 2)).ravel()  # (rows + 1, cols + 1, n)
    row, col = (cols + 1) * num_images, num_images  # steps in the flat table
    corner = top * row + left * col + np.arange(num_images, dtype=np.int32)
    down, aside = height * row, width * col
    counts = sums[corner + down + aside] - sums[corner + down] - sums[corner + aside] + sums[corner]
    return np.asarray(counts, dtype=np.int32)


@functools.cache
def _triangle(size: int) -> Reals:
    return np.tri(size + 1, size, -1, dtype=np.float32)


def _top_up(masked: Booleans, missing: Integers, generator: Generator) -> Booleans:
    """Masks as many more patches as are ``missing``, if any, all equally likely.

    Shape: masked (rows, cols, n), missing (n,).
    """
    keys = torch.rand(masked.shape, generator=generator).numpy()
    keys[masked] = 1.0  # the numbers are below 1, so masked patches rank last
    rank = keys.reshape(-1, len(missing)).argsort(0).argsort(0).reshape(masked.shape)
    return masked | (rank < missing)
