"""Decoding single images of a source, in whichever process asks."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mimkit.data.drawing import Drawing
from mimkit.data.intake.table import Skipped, Table
from mimkit.data.pixels.arrays import rasterised
from mimkit.data.pixels.decode import SHRINKS, decode
from mimkit.data.pixels.form import Form
from mimkit.data.pixels.raster import Raster, Scale
from mimkit.data.pixels.unreadable import MisfitError, UnreadableError
from mimkit.errors import DataError


class Reader(Protocol):
    """What gives the images of a source."""

    def __call__(self, index: int, shrink: int = 1) -> Raster:
        """Gives an image, up to ``shrink`` times smaller if that is cheaper."""


class MeetingReader(Reader, Protocol):
    """A reader that looks at an image when it is first asked for it."""

    def __len__(self) -> int: ...

    def measure(self, index: NDArray[np.int64]) -> NDArray[np.int32]:
        """Tells heights and widths, (n, 2), of images (n,)."""

    def broken(self) -> tuple[Skipped, ...]:
        """Lists the images met so far that cannot be read."""


@dataclass(frozen=True)
class Files:
    """Reads images from files or tables that were looked at before.

    Args:
        table: the undecoded images.
        rows: (N,) int64, the usable rows.
        sizes: (N, 2) int32, heights and widths as they were found.
        form: what images are made into.
        scale: stored values that become 0 and 1; None: images are in 8 bits.
    """

    table: Table
    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    form: Form
    scale: Scale | None

    def __call__(self, index: int, shrink: int = 1) -> Raster:
        """Decodes an image, up to ``shrink`` times smaller if its format makes that cheap.

        Raises: DataError if it is not what it was. No other image stands in for it, because then
            a batch would depend on when it is read.
        """
        height, width = map(int, self.sizes[index])
        return read_again(self.table, int(self.rows[index]), (height, width), shrink, self)


class Wanted(Protocol):
    """What images are made into, and how they are scaled."""

    @property
    def form(self) -> Form:
        """Channels and range."""

    @property
    def scale(self) -> Scale | None:
        """Stored values that become 0 and 1; None: images are in 8 bits."""


def read_again(
    table: Table, row: int, size: tuple[int, int], shrink: int, wanted: Wanted
) -> Raster:
    """Decodes an image whose height and width are known.

    Raises: DataError if it is not what it was.
    """
    height, width = size
    try:
        image = in_depth(decode(table.content(row), shrink, wanted.form), wanted.scale)
    except (OSError, UnreadableError) as error:
        problem = str(error)
    else:
        times = [each for each in SHRINKS if each <= shrink]
        if image.size in [(-(-width // each), -(-height // each)) for each in times]:
            return image if wanted.scale is None else image.scaled(wanted.scale)
        problem = f"it is {image.size[0]} x {image.size[1]} pixels"
    raise DataError(
        f"{table.where(row)}: must still be the image of {width} x {height} pixels that it was "
        f"when it was first looked at, but: {problem}. Mend or remove the file, then repeat the "
        "command: files that changed are looked at again."
    )


def in_depth(image: Raster, scale: Scale | None) -> Raster:
    """Returns an image if it is as deep as the others.

    Raises: MisfitError if it is not.
    """
    if image.deep is (scale is None):
        raise MisfitError(depth_misfit(image))
    return image


def depth_misfit(image: Raster) -> str:
    """Says what is wrong with an image that is not as deep as the others."""
    mine, others = ("more than 8 bits", "8 bits") if image.deep else ("8 bits", "more")
    return (
        f"is stored in {mine}, but the first image in {others}: say which values are black and "
        "white with data.range = [LOW, HIGH], or data.range = 'type' for what each type can hold"
    )


@dataclass(frozen=True)
class Pictures:
    """Draws pictures of an embedded set.

    Args:
        drawing: the set.
        numbers: (N,) int64, which pictures.
        image_size: side in pixels.
        channels: 3, or 1 for their grey.
    """

    drawing: Drawing
    numbers: NDArray[np.int64]
    image_size: int
    channels: int

    def __call__(self, index: int, shrink: int = 1) -> Raster:
        """Draws a picture, always at its full size."""
        number = self.numbers[index : index + 1]
        images, _ = self.drawing.draw(number, image_size=self.image_size)
        return rasterised(images[0].transpose(1, 2, 0), Form(self.channels))
