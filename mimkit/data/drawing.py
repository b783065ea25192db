"""What embedded data sets have in common: pictures that are drawn, each from its number alone.

Every operation is one that IEEE 754 rounds exactly (no sine): the same bytes everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mimkit.data.counter import uniform

Plane = NDArray[np.floating[Any]]
"""(n, 1, 1) for one value a picture, (n, H, W) for one a pixel."""
Images = NDArray[np.uint8]
Numbers = NDArray[np.int64]

_TEST_START: Final = 10**12


@dataclass(frozen=True)
class Annotation:
    """Where the parts of pictures are.

    Args:
        parts: which part a pixel shows, by the number of its place from 1; 0 is none, or a stray
            one.
        kinds: of each place the kind of its part, from 1; 0 where the class has none.
        boxes: left, top, right and bottom of what is seen of each place's part, right and bottom
            just outside of it, and in the last row of the whole object; zeros where nothing is.

    Shape: parts (n, H, W) uint8, kinds (n, P) int64, boxes (n, P + 1, 4) int64 in pixels.
    """

    parts: NDArray[np.uint8]
    kinds: NDArray[np.int64]
    boxes: NDArray[np.int64]


@dataclass(frozen=True)
class Drawing:
    """A data set that is drawn and not read.

    Args:
        classes: names of the classes; ten successive pictures show each of ten once.
        min_image_size: side in pixels below which the classes can no longer be told apart.
        render: gives pictures (n, 3, H, W) uint8 and labels (n,) int64 from their numbers (n,)
            int64, the side in pixels and a seed: a function of these three alone, and the labels
            one of number and seed.
    """

    classes: tuple[str, ...]
    min_image_size: int
    render: Callable[[Numbers, int, int], tuple[Images, Numbers]]
    parts: tuple[str, ...] = ()
    annotate: Callable[[Numbers, int, int], Annotation] | None = None

    def draw(self, index: Numbers, *, image_size: int, seed: int = 0) -> tuple[Images, Numbers]:
        """Draws the pictures with these numbers.

        Shape: index (n,) int64, images (n, 3, image_size, image_size) uint8, labels (n,) int64
            that number ``classes``.
        Raises: ValueError if ``image_size`` is too small.
        """
        if image_size < self.min_image_size:
            raise ValueError(
                f"image_size must be at least {self.min_image_size}, but is {image_size}"
            )
        return self.render(index, image_size, seed)


def split(name: Literal["train", "test"], count: int) -> Numbers:
    """Gives the numbers of a split's first ``count`` pictures; the two splits never overlap.

    Shape: (count,) int64. Any multiple of the number of classes holds all of them equally often.
    """
    start = {"train": 0, "test": _TEST_START}[name]
    return np.arange(start, start + count, dtype=np.int64)


def balanced(seed: int, stream: int, index: Numbers, num_classes: int) -> Numbers:
    """Gives the classes of pictures: successive ones show all classes, in a random order.

    So they are exactly balanced, and no stride through the numbers (a shard, a worker) meets one
    class only.

    Shape: index (n,) int64, result (n,) int64.
    """
    block, place = np.divmod(index, num_classes)
    order = np.argsort(uniform(seed, stream, block, num_classes), axis=1)
    return order[np.arange(len(index)), place].astype(np.int64)


def turned(tangent: Plane, x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """Turns (x, y) by the angle with this half-angle tangent, without sine or cosine."""
    square = tangent * tangent
    cosine: Plane = (1 - square) / (1 + square)
    sine = tangent * (1 + cosine)
    return cosine * x - sine * y, sine * x + cosine * y


def wave(turns: Plane) -> Plane:
    """Gives a triangle wave in [-1, 1] of period 1: a sine that every machine rounds alike."""
    distance: Plane = np.abs(turns - np.floor(turns + 0.5))
    return 4 * distance - 1


def tint(hue: Plane, chroma: Plane) -> list[Plane]:
    """Gives what a hue, in turns of the colour circle, adds to red, green and blue.

    Brightness is taken off: the hue leaves it alone.
    """
    red, green, blue = (wave(hue + third) / 2 for third in (0, 1 / 3, 2 / 3))
    grey = 0.3 * red + 0.59 * green + 0.11 * blue
    return [chroma * (part - grey) for part in (red, green, blue)]
