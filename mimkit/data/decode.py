"""Image files to 8-bit RGB, whatever mode they are stored in."""

import functools
import struct
import warnings
import zlib
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SHRINKS: Final = (1, 2, 4, 8)
"""How many times smaller JPEG can be decoded."""
_ORIENTATION: Final = 0x0112
# What Pillow's readers raise on files that are cut, corrupt, too large or of an unknown kind.
_FAILURES: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableError(Exception):
    """The bytes are no image that can be used; the text says why."""


def decode(content: bytes, shrink: int = 1) -> Image.Image:
    """Decodes an image file to RGB, upright.

    The first frame of several; turned as its EXIF orientation says; 16-bit grey scaled to 8 bit;
    transparent pixels shown on white; any other mode as Pillow converts it.

    Args:
        content: the file.
        shrink: JPEG is decoded at 1/2, 1/4 or 1/8 of its size (rounded up), where that is no
            smaller than one in ``shrink``: several times faster for photographs.

    Raises: UnreadableError if that fails.
    """
    return _open(content, shrink)[0]


def measure(content: bytes) -> tuple[int, int]:
    """Returns height and width as `decode` would give them, having read the image to its end.

    JPEG is decoded at an eighth of its size, which is cheaper and finds what is cut as well.

    Raises: UnreadableError if `decode` would fail.
    """
    width, height = _open(content, SHRINKS[-1])[1]
    return height, width


def _open(content: bytes, shrink: int) -> tuple[Image.Image, tuple[int, int]]:
    if not content:
        raise UnreadableError("is empty")
    with warnings.catch_warnings():
        # Odd metadata and large sizes are no reason to bother anyone, or to stop.
        warnings.simplefilter("ignore")
        try:
            image: Image.Image = Image.open(BytesIO(content), formats=_formats())
            size = image.size
            smaller = max(1, size[0] // shrink), max(1, size[1] // shrink)
            shrunk = shrink > 1 and image.draft("RGB", smaller) is not None
            image.load()
            size = size if shrunk else image.size
            if image.getexif().get(_ORIENTATION, 1) >= 5:
                size = size[::-1]
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image), size
        except UnidentifiedImageError as error:
            raise UnreadableError("is no image of a known kind") from error
        except _FAILURES as error:
            raise UnreadableError(f"cannot be decoded: {error}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those formats that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in 16 or 32
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableError("holds floating-point pixels, whose range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
