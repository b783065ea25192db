"""How sure a mean over seeds is, for other seeds and for other test images of the same kind.

Every seed is judged on the same m test images, so that seeds and images are crossed. The score of
image i with seed s is taken as

    d(s, i) = mean + seed(s) + image(i) + rest(s, i),

whose mean over n seeds and m images has the variance seed/n + image/m + rest/(n m). The spread over
seeds shows the first and the last part; the second does not shrink with seeds and is seen only in
the single images. For a difference of two methods d is the difference of their scores on the same
image: what both find easy or hard cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

LEVEL: Final = 0.95
_ROUNDING: Final = 1e-6  # of numbers that were float32 once
_LEAST_TAIL: Final = 1e-100  # below it quantiles of few degrees of freedom overflow

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One number, and what is known of the images that it is a mean over.

    Args:
        value: the number.
        scores: (m,) of the single images, whose mean is ``value``; None where they were not kept.
        most_error: where they were not: the largest variance that ``value`` can have over the
            choice of images; 0 where nothing is known of it.
    """

    value: float
    scores: Floats | None = None
    most_error: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and images with its error.

    Args:
        mean: over seeds.
        num_seeds: n.
        seeds: variance of the mean as the spread over seeds shows it; NaN for one seed.
        images: variance that the choice of images adds, however many seeds there are.
        alone: variance that the choice of images leaves with these seeds; the interval is never
            narrower than half of what it alone would give.
    """

    mean: float
    num_seeds: int
    seeds: float
    images: float
    alone: float

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Ends of the 95 % interval; None with one seed, or where nothing shows an error."""
        if not self._has_error:
            return None, None
        margin = self._margin((1 + LEVEL) / 2)
        return self.mean - margin, self.mean + margin

    @property
    def p_value(self) -> float | None:
        """Two-sided, that the mean is zero; None where there is no interval.

        It is below 5 % exactly where the 95 % interval leaves zero out.
        """
        if not self._has_error:
            return None
        size = abs(self.mean)
        if not size:
            return 1.0
        # In logarithms of the tail: the margin falls from infinity to nothing as the tail grows.
        least, most = math.log(_LEAST_TAIL), math.log(0.5)
        if self._margin_of_tail(math.exp(least)) <= size:
            return 2 * _LEAST_TAIL
        tail = brentq(lambda x: self._margin_of_tail(math.exp(x)) - size, least, most, xtol=1e-10)
        return float(2 * math.exp(tail))

    @property
    def _has_error(self) -> bool:
        if self.num_seeds < 2:
            return False
        return self.alone > 0 or self.seeds > (_ROUNDING * self.mean) ** 2

    def _margin(self, quantile: float) -> float:
        return self._margin_of_tail(1 - quantile)

    def _margin_of_tail(self, tail: float) -> float:
        student = -float(stdtrit(self.num_seeds - 1, tail))
        normal = -float(ndtri(tail))
        return float(margin(np.asarray(self.seeds), self.images, self.alone, student, normal))


def margin(seeds: Floats, images: float, alone: float, student: float, normal: float) -> Floats:
    """Gives half the width of an interval, elementwise.

    The error of few seeds is known badly, that of many images well. So the one counts by Student's
    quantile and the other by the normal one, each with its share of the variance. Without an error
    of images it is Student's interval.

    Args:
        seeds: see `Estimate`, as the next two.
        images: likewise.
        alone: likewise.
        student: quantile of Student's distribution with n - 1 degrees of freedom.
        normal: quantile of the normal distribution.

    Source: W. G. Cochran and G. M. Cox, Experimental Designs, 1950, for two variances that are
        known with unequal certainty. The mean of n seeds cannot be much surer than those n seeds
        leave it by the choice of images alone: at n = 2 equal numbers are common by chance. Half
        of that is where simulated intervals hold the truth in 97 to 98 of 100 comparisons; the
        whole of it makes them hold it in 99.
    """
    mixed: Floats = (seeds * student + images * normal) / np.sqrt(seeds + images)
    half: Floats = np.maximum(mixed, normal * np.sqrt(alone) / 2)
    return half


def estimate(series: Sequence[Measured]) -> Estimate:
    """Estimates a mean; one number for each seed, at least one."""
    return _estimate(
        [one.value for one in series],
        [one.scores for one in series],
        [one.most_error for one in series],
    )


def estimate_difference(pairs: Sequence[tuple[Measured, Measured]]) -> Estimate:
    """Estimates the mean of first minus second; one pair for each seed, at least one."""
    bounds = [
        0.0 if not (a.most_error and b.most_error) else a.most_error + b.most_error
        for a, b in pairs
    ]
    return _estimate(
        [a.value - b.value for a, b in pairs],
        [_minus(a.scores, b.scores) for a, b in pairs],
        bounds,
    )


def mean_of(repeated: Sequence[Measured]) -> Measured:
    """Takes what was measured several times with one seed for one number."""
    scores = [one.scores for one in repeated if one.scores is not None]
    alike = len(scores) == len(repeated) and len({len(one) for one in scores}) == 1
    return Measured(
        float(np.mean([one.value for one in repeated])),
        np.mean(scores, axis=0) if alike else None,
        max(one.most_error for one in repeated),
    )


def largest_error(value: float, num_images: int) -> float:
    """Gives the most that the variance of a mean of ``num_images`` numbers in [0, 1] can be.

    That of 0 and 1, estimated as if there were half an image more of each, and never of one sure
    value. Of a difference the sum of both is the most where what is hard for one is not easy for
    the other, as it is for classifiers.
    """
    return (value * (1 - value) * num_images + 1) / num_images**2


def _minus(first: Floats | None, second: Floats | None) -> Floats | None:
    if first is None or second is None or first.shape != second.shape:
        return None
    return first - second


def _estimate(
    values: Sequence[float], scores: Sequence[Floats | None], bounds: Sequence[float]
) -> Estimate:
    num_seeds = len(values)
    known = [one for one in scores if one is not None]
    if len(known) < num_seeds or len({len(one) for one in known}) > 1 or len(known[0]) < 2:
        spread = float(np.var(values, ddof=1)) / num_seeds if num_seeds > 1 else math.nan
        bound = float(np.mean(bounds)) if all(bounds) else 0.0
        return Estimate(float(np.mean(values)), num_seeds, spread, bound, bound)
    if num_seeds == 1:
        return Estimate(float(known[0].mean()), 1, math.nan, math.nan, math.nan)
    mean, *variances = components(np.stack(known))
    return Estimate(float(mean), num_seeds, *map(float, variances))


def components(table: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Takes scores apart: their mean, and the three variances of an `Estimate`.

    Args:
        table: (..., n, m), of n seeds on the same m images, at least two of each.

    Shape: (...) each.
    Source: two-way analysis of variance with random effects, one score a cell. Each variance of
        images has that of one image in it: where hardly any image tells two methods apart, the
        normal approximation of the few that do would be too sure (A. Agresti and Y. Min, Simple
        improved confidence intervals for comparing matched proportions, 2005).
    """
    num_seeds, num_images = table.shape[-2:]
    of_seeds, of_images = table.mean(-1), table.mean(-2)
    mean = of_seeds.mean(-1)
    one = np.full_like(mean, 1 / num_images**2)
    seeds = of_seeds.var(-1, ddof=1) / num_seeds
    alone = of_images.var(-1, ddof=1) / num_images
    squares = np.square(table).sum((-2, -1)) - num_seeds * num_images * np.square(mean)
    squares -= (num_seeds - 1) * num_seeds * num_images * seeds
    squares -= (num_images - 1) * num_images * num_seeds * alone
    rest = squares / ((num_seeds - 1) * (num_images - 1)) / (num_seeds * num_images)
    return mean, seeds, np.maximum(0, alone - rest) + one, alone + one
