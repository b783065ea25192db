"""Blockwise masking (BEiT, arXiv 2106.08254): rectangles until a share of the grid is covered."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from torch import Generator

from mimkit import Geometry, Mask, Masker, Ratio, RecipeError, Size

Reals = NDArray[np.float32]
Booleans = NDArray[np.bool_]
Words = NDArray[np.uint64]
"""Sets of patches, a bit each: (..., words), where a word has 64 patches."""

Aspect = Annotated[float, Interval(ge=0.01, le=100)]
"""Height through width of a rectangle."""

ATTEMPTS: Final = 10
"""Rectangles that are tried in one round, of which the first that fits is masked."""
ROUNDS: Final = 3
"""Rounds that are made at a stretch; only then are finished images set aside."""
CHUNK: Final = 512
"""Images that are masked at once: more would leave the processor's cache."""
SPARE_ROUNDS: Final = 100
"""Rounds beyond one for each patch, after which missing patches are drawn singly."""


class BlockMasker(Masker):
    """Masks random rectangles until enough patches are masked; most lie about the centre.

    A round tries ten rectangles and masks the first that is smaller than the grid in both
    directions and adds at least one patch but none too many. The first round without such a
    rectangle ends the mask, short of ``num_targets`` in every third image at the published
    settings. With ``exact`` the rounds go on until the count is reached.

    No mask is empty: as long as nothing is masked, the rounds go on in any case. Should about
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

    miniature: ClassVar[Mapping[str, Any]] = {"mask_ratio": 0.4}
    tunable: ClassVar[Mapping[str, tuple[float, float]]] = {"mask_ratio": (0.15, 0.75)}

    @classmethod
    def tuned(cls, options: Mapping[str, Any], values: Mapping[str, float]) -> Mapping[str, Any]:
        """Takes the ratio in the place of a number of patches, and rectangles that follow it."""
        return {**options, "num_targets": None, **values}

    def __init__(
        self,
        geometry: Geometry,
        *,
        mask_ratio: Ratio | None = None,
        num_targets: Size | None = None,
        mode: Literal["replace", "drop"] = "replace",
        min_block: Size | None = None,
        max_block: Size | None = None,
        aspect: tuple[Aspect, Aspect] = (0.3, 1 / 0.3),
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
        if min_block > largest:
            raise RecipeError(
                "masker 'block', min_block: must be at most max_block and "
                f"num_targets ({largest} patches), but is {min_block}."
            )
        if aspect[0] > aspect[1]:
            raise RecipeError(
                f"masker 'block', aspect: must be two ascending numbers, but is {list(aspect)}."
            )
        # How many patches a mask may lack when a round fails.
        self._optional = 0 if exact else self.num_masked - 1
        self._lines = _lines(self.grid.rows, self.grid.cols)
        self._first_lines = np.array([0, self.grid.rows + 1]).reshape(2, 1, 1)
        self._ends = np.array([self.grid.rows, self.grid.cols], dtype=np.float32).reshape(2, 1, 1)
        self._refuse_if_nothing_fits(largest)

    def sample(self, batch_size: int, generator: Generator) -> Mask:
        """Masks rectangle after rectangle, in all images at once.

        Shape: with M = ``num_targets``, target (B, 1, M), padded unless ``exact``; context (B, N)
            for mode "replace", (B, N - M) for "drop".
        """
        sizes = [min(CHUNK, batch_size - start) for start in range(0, batch_size, CHUNK)]
        masked = torch.from_numpy(np.concatenate([self._cover(n, generator) for n in sizes]))
        if self.predict == "all":
            return Mask.replace_predicting_all(masked, self.grid)
        if self.hides:
            return Mask.replace(masked, self.grid, self.num_targets)
        return Mask.drop(masked, self.grid)

    def _cover(self, num_images: int, generator: Generator) -> Booleans:
        """Says which patches are masked, (n, N) bool."""
        unmasked = ~np.zeros((num_images, self._lines.shape[1]), dtype=np.uint64)
        free, missing = unmasked, np.full(num_images, self.num_masked, dtype=np.float32)
        images = np.arange(num_images)
        for _ in range(0, self.num_masked + SPARE_ROUNDS, ROUNDS):
            free, missing = self._rounds(free, missing, generator)
            unmasked[images] = free
            goes_on = missing > 0
            free, missing, images = free[goes_on], missing[goes_on], images[goes_on]
            if not len(images):
                break
        octets = (~unmasked).view(np.uint8)
        masked = np.unpackbits(octets, axis=1, count=self.grid.num_patches).view(np.bool_)
        if len(images):
            masked[images] = _top_up(masked[images], missing - self._optional, generator)
        return masked

    def _rounds(self, free: Words, missing: Reals, generator: Generator) -> tuple[Words, Reals]:
        """Makes the next `ROUNDS` rounds of all images at once.

        Shape: free (n, words), the unmasked patches; missing (n,), how many of them are still to be
            masked, 0 where the mask has ended.
        """
        num_images, num_words = free.shape
        u: Reals = torch.rand(ROUNDS, 4, ATTEMPTS, num_images, generator=generator).numpy()
        ones, images = np.ones(num_words, dtype=np.float32), np.arange(num_images)
        for u_area, stretch, u_place in zip(u[:, 0], self._stretch(u[:, 1]), u[:, 2:], strict=True):
            # The attempts of a round do not depend on each other, so all are made at once.
            largest = np.minimum(missing, self.max_block)
            block = self._place(self._sides(largest, u_area, stretch), u_place) & free
            added = np.bitwise_count(block) @ ones  # (attempts, n); exact, and faster than a sum
            added *= added <= largest
            first = (added > 0).argmax(0) * num_images + images
            gained = added.ravel().take(first)
            success = gained > 0
            free = free ^ block.reshape(-1, num_words).take(first, axis=0) * success[:, None]
            missing = (missing - gained) * (success | (missing > self._optional))
        return free, missing

    def _stretch(self, u: Reals) -> Reals:
        """Gives the roots of aspects, and their inverses, for numbers in [0, 1].

        Shape: u (..., attempts, n), the result (..., 2, attempts, n).
        """
        low, high = math.log(self.aspect[0]) / 2, math.log(self.aspect[1]) / 2
        signs = np.array([1, -1], dtype=np.float32).reshape(2, 1, 1)
        return np.exp(signs * (low + (high - low) * u)[..., None, :, :])

    def _sides(self, largest: Reals, u: Reals, stretch: Reals) -> Reals:
        """Gives whole heights and widths, (2, attempts, n), for numbers in [0, 1]."""
        side = np.sqrt(self.min_block + (largest - self.min_block) * u)
        sides: Reals = np.rint(side * stretch)
        return sides

    def _place(self, sides: Reals, u: Reals) -> Words:
        """Gives the patches of rectangles, none of those that are not smaller than the grid.

        Shape: sides and u (2, attempts, n), the result (attempts, n, words).
        """
        sides = sides * (sides < self._ends)
        start = (u * (self._ends + 1 - sides)).astype(np.intp) + self._first_lines
        stop = start + sides.astype(np.intp)
        in_rows, in_cols = self._lines.take(start, axis=0) ^ self._lines.take(stop, axis=0)
        block: Words = in_rows & in_cols
        return block

    def _refuse_if_nothing_fits(self, largest: int) -> None:
        u = np.linspace(0, 1, 65, dtype=np.float32)
        sides = self._sides(np.array(largest, dtype=np.float32), u[:, None], self._stretch(u[None]))
        if not ((sides > 0) & (sides < self._ends)).all(0).any():
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


def _lines(rows: int, cols: int) -> Words:
    """Gives the patches above each row, then those left of each column; ends included.

    Two entries differ in the patches of the rows, or columns, between them.

    Shape: (rows + 1 + cols + 1, words).
    """
    above = np.tri(rows + 1, rows, -1, dtype=np.bool_).repeat(cols, axis=1)
    left = np.tile(np.tri(cols + 1, cols, -1, dtype=np.bool_), rows)
    patches = np.pad(np.concatenate([above, left]), ((0, 0), (0, -rows * cols % 64)))
    return np.packbits(patches, axis=1).view(np.uint64)


def _top_up(masked: Booleans, missing: Reals, generator: Generator) -> Booleans:
    """Masks as many more patches as are ``missing``, if any, all equally likely.

    Shape: masked (n, N), missing (n,).
    """
    keys = torch.rand(masked.shape, generator=generator).numpy()
    keys[masked] = 1.0  # the numbers are below 1, so masked patches rank last
    return masked | (keys.argsort(1).argsort(1) < missing[:, None])
