"""Decoding single images of a source, in whichever process asks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimkit.data import shapes
from mimkit.data.decode import UnreadableError, decode
from mimkit.data.table import Table
from mimkit.errors import DataError


@dataclass(frozen=True)
class Files:
    """Reads images from files or tables that were looked at before.

    Args:
        table: the undecoded images.
        rows: (N,) int64, the usable rows.
        sizes: (N, 2) int32, heights and widths as they were found.
    """

    table: Table
    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]

    def __call__(self, index: int) -> Image.Image:
        """Decodes an image.

        Raises: DataError if it is not what it was. No other image stands in for it, because then
            a batch would depend on when it is read.
        """
        row = int(self.rows[index])
        height, width = map(int, self.sizes[index])
        try:
            image = decode(self.table.content(row))
        except (OSError, UnreadableError) as error:
            problem = str(error)
        else:
            if image.size == (width, height):
                return image
            problem = f"is {image.size[0]} x {image.size[1]} pixels"
        raise DataError(
            f"{self.table.where(row)}: must still be the image of {width} x {height} pixels that "
            f"it was when the data was first opened, but: {problem}. Mend or remove the file, then "
            "repeat the command: files that changed are looked at again."
        )


@dataclass(frozen=True)
class Pictures:
    """Draws pictures of the embedded set.

    Args:
        numbers: (N,) int64, which pictures.
        image_size: side in pixels.
    """

    numbers: NDArray[np.int64]
    image_size: int

    def __call__(self, index: int) -> Image.Image:
        """Draws a picture."""
        images, _ = shapes.draw(self.numbers[index : index + 1], image_size=self.image_size)
        return Image.fromarray(images[0].transpose(1, 2, 0))
