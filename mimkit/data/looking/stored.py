"""What values images store: their range, and by channel their mean and deviation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimkit.data.pixels.form import Form
from mimkit.data.pixels.raster import Raster, Scale

_EIGHT_BITS: Scale = (0.0, 255.0)


@dataclass(frozen=True)
class Stored:
    """What values the images of a split store.

    Args:
        deep: whether they are in float32, as values of more than 8 bits are; all images alike.
        low: the least value.
        high: the greatest.
        mean: of each channel, of what lies within a given range.
        std: likewise.
        count: how many images were looked at for that.
    """

    deep: bool
    low: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, deep: bool, rows: NDArray[np.float64]) -> Stored | None:
        """Sums up what `tally` found of each image, (n, 3 + 2 C); None if nothing was wanted."""
        if not rows.size:
            return None
        pixels, channels = rows[:, :1], (rows.shape[1] - 3) // 2
        means, variances = rows[:, 3 : 3 + channels], rows[:, 3 + channels :]
        mean = (pixels * means).sum(0) / pixels.sum()
        variance = (pixels * (variances + (means - mean) ** 2)).sum(0) / pixels.sum()
        return cls(
            deep,
            float(rows[:, 1].min()),
            float(rows[:, 2].max()),
            tuple(mean.tolist()),
            tuple(np.sqrt(variance).tolist()),
            len(rows),
        )

    def scale(self, form: Form) -> Scale | None:
        """Says which stored values become 0 and 1; None if images stay in 8 bits."""
        if not self.deep:
            return None
        low, high = form.range if isinstance(form.range, tuple) else (self.low, self.high)
        return (low, high) if high > low else (low, low + 1.0)

    def statistics(self, form: Form) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Gives mean and deviation of each channel, of pixels in [0, 1].

        A channel that never changes gets a deviation of 1: it becomes zero.
        """
        low, high = self.scale(form) or _EIGHT_BITS
        mean = tuple((value - low) / (high - low) for value in self.mean)
        return mean, tuple(value / (high - low) or 1.0 for value in self.std)

    def note(self, form: Form) -> str:
        """Says what was found, in one line."""
        mean, std = self.statistics(form)
        said = [f"{form.channels} channel{'s' * (form.channels > 1)}"]
        if (scale := self.scale(form)) is not None:
            how = "as data.range says" if isinstance(form.range, tuple) else "measured"
            low, high = map(_short, scale)
            said.append(f"stored values {low} to {high} become 0 to 1 ({how}), in float32")
            if (self.low, self.high) != scale and isinstance(form.range, tuple):
                said.append(f"values go from {_short(self.low)} to {_short(self.high)}")
        means, stds = (", ".join(f"{value:.4f}" for value in each) for each in (mean, std))
        said.append(f"mean {means}, deviation {stds} of {self.count:,} images")
        return "; ".join(said)


def tally(image: Raster, form: Form) -> list[float]:
    """Counts pixels of an image, finds least and greatest value, then means, then variances."""
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    if isinstance(form.range, tuple):
        values = values.clip(*form.range)
    means, variances = values.mean((0, 1)), values.var((0, 1))
    return [float(values[..., 0].size), float(low), float(high), *means.tolist(), *variances]


def tallies(rows: Iterable[list[float]], form: Form) -> NDArray[np.float64]:
    """Puts what `tally` found of several images together, (n, 3 + 2 C)."""
    return np.array(list(rows), np.float64).reshape(-1, 3 + 2 * form.channels)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.6g}"
