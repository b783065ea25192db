"""The objects of an embedded data set: the parts of its pictures, each drawn again when asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimkit.data.drawing import Drawing
from mimkit.data.intake.table import Skipped
from mimkit.data.truth.records import Instances
from mimkit.data.truth.regions import encode


@dataclass(frozen=True, eq=False)
class DrawnObjects:
    """The parts of pictures.

    Args:
        drawing: with parts.
        numbers: (N,) int64, which pictures.
        image_size: side in pixels.
    """

    drawing: Drawing
    numbers: NDArray[np.int64]
    image_size: int
    has_regions = True
    skipped: tuple[Skipped, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The kinds of parts."""
        return self.drawing.kinds

    @property
    def fingerprint(self) -> str:
        """The pictures' own, which says what is drawn, serves for their parts."""
        return f"drawn at {self.image_size}"

    @property
    def kind(self) -> str:
        """Nothing: what is drawn is known."""
        return ""

    def usable(self) -> NDArray[np.int64]:
        """All images."""
        return np.arange(len(self.numbers))

    def __call__(self, index: int) -> Instances:
        """Gives the parts that are seen of a picture."""
        assert self.drawing.annotate is not None
        found = self.drawing.annotate(self.numbers[index : index + 1], image_size=self.image_size)
        places = np.unique(found.parts[found.parts > 0]).astype(np.int64)
        masks = found.parts[0] == places[:, None, None]
        return Instances(
            boxes=found.boxes[0, places - 1].astype(np.float32),
            labels=found.kinds[0, places - 1] - 1,
            crowd=np.zeros(len(places), dtype=np.bool_),
            areas=masks.sum((1, 2)).astype(np.float32),
            regions=tuple(encode(masks)),
        )
