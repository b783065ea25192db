"""Masks of pictures that are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.drawing import Drawing
from mimkit.data.intake.table import Skipped

_RESIDENT_BYTES: Final = 2**28
"""Masks that need more are drawn one by one."""


@dataclass(frozen=True, eq=False)
class DrawnMasks:
    """In which kind of part's square every pixel of an embedded set's pictures lies.

    Args:
        drawing: the set.
        numbers: (N,) int64, which pictures.
        image_size: side in pixels.
    """

    drawing: Drawing
    numbers: NDArray[np.int64]
    image_size: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The ground, and the kinds of parts."""
        return ("ground", *self.drawing.kinds)

    @property
    def fingerprint(self) -> str:
        """They change with the pictures alone."""
        return ""

    @property
    def kind(self) -> str:
        """Nothing: what is drawn is known."""
        return ""

    @property
    def note(self) -> str:
        """Nothing."""
        return ""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Nothing."""
        return ()

    def usable(self) -> NDArray[np.int64]:
        """All have a mask."""
        return np.arange(len(self.numbers))

    def __call__(self, index: int) -> NDArray[np.int64]:
        """Gives the class of every pixel of a picture."""
        if len(self.numbers) * self.image_size**2 <= _RESIDENT_BYTES:
            kinds = self._all[index]
        else:
            kinds = self._draw(self.numbers[index : index + 1])[0]
        found: NDArray[np.int64] = kinds.astype(np.int64)
        return found

    @cached_property
    def _all(self) -> NDArray[np.uint8]:
        return self._draw(self.numbers)

    def _draw(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        assert self.drawing.annotate is not None
        found = self.drawing.annotate(numbers, image_size=self.image_size)
        kinds = np.pad(found.kinds, ((0, 0), (1, 0))).astype(np.uint8)  # part 0 is the ground
        return kinds[np.arange(len(numbers))[:, None, None], found.regions]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_all"}
