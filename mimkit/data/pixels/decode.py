"""Image files to 8-bit RGB, whatever mode they are stored in."""

import contextlib
import functools
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from mimkit.data.pixels.metadata import without_metadata

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SHRINKS: Final = (1, 2, 4, 8)
"""How many times smaller JPEG can be decoded."""
_ORIENTATION: Final = 0x0112
_LINKS: Final = (0x8769, 0x8825, 0xA005)
"""EXIF, GPS and interoperability: tags of a TIFF that lead to more tags."""
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each EXIF orientation asks for. Source: EXIF 2.32, 4.6.4."""
_SIDEWAYS: Final = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
# What Pillow's readers raise on files that are cut, corrupt, too large or of an unknown kind.
FAILURES: Final = (
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


@dataclass(frozen=True)
class Look:
    """An image file as it was found.

    Args:
        image: in RGB, upright; JPEG may be smaller than it is stored.
        size: height and width as it is stored, upright.
        values: the least and the greatest stored value, where a value takes more than 8 bits.
    """

    image: Image.Image
    size: tuple[int, int]
    values: tuple[int, int] | None


def decode(content: bytes, shrink: int = 1) -> Image.Image:
    """Decodes an image file to RGB, upright; see `look`.

    Raises: UnreadableError if that fails.
    """
    return look(content, shrink).image


def measure(content: bytes) -> tuple[int, int]:
    """Returns height and width as `decode` would give them, having read the image to its end.

    JPEG is decoded at an eighth of its size, which is cheaper and finds what is cut as well.

    Raises: UnreadableError if `decode` would fail.
    """
    return look(content, SHRINKS[-1]).size


def look(content: bytes, shrink: int = 1) -> Look:
    """Decodes an image file to RGB, upright.

    The first frame of several; turned as its EXIF orientation says, of which only the values 1 to 8
    mean anything; 16-bit grey scaled to 8 bit; transparent pixels shown on white; any other mode as
    Pillow converts it. Pixels come first: EXIF, texts or colour profiles that cannot be read, or
    are too large for Pillow, are left out.

    Args:
        content: the file.
        shrink: JPEG is decoded at 1/2, 1/4 or 1/8 of its size (rounded up), where that is no
            smaller than one in ``shrink``: several times faster for photographs.

    Raises: UnreadableError if that fails.
    """
    if not content:
        raise UnreadableError("is empty")
    with warnings.catch_warnings():
        # Odd metadata and large sizes are no reason to bother anyone, or to stop.
        warnings.simplefilter("ignore")
        try:
            return _look(content, shrink)
        except FAILURES as error:
            for bare in without_metadata(content):
                with contextlib.suppress(*FAILURES):
                    return _look(bare, shrink)
            if isinstance(error, UnidentifiedImageError):
                raise UnreadableError("is no image of a known kind") from error
            raise UnreadableError(f"cannot be decoded: {error}") from error


def _look(content: bytes, shrink: int) -> Look:
    image = Image.open(BytesIO(content), formats=_formats())
    if image.format == "TIFF":
        _forget_links(image)
    width, height = image.size
    smaller = max(1, width // shrink), max(1, height // shrink)
    shrunk = shrink > 1 and image.draft("RGB", smaller) is not None
    stored = str(image.tile[0].args) if image.tile else ""
    image.load()
    if not shrunk:
        width, height = image.size
    values = _values(image, stored)
    turn = _turn(image)
    if turn in _SIDEWAYS:
        width, height = height, width
    upright = image if turn is None else image.transpose(turn)
    return Look(_to_rgb(upright), (height, width), values)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Says how an image must be turned; TIFF and AVIF are turned by Pillow as they are loaded."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except FAILURES:
        return None
    return _TURNS.get(orientation) if type(orientation) is int else None


def _forget_links(image: Image.Image) -> None:
    """Keeps Pillow from following a TIFF's links to metadata, which may lead nowhere."""
    exif = image.getexif()
    for tag in _LINKS:
        exif.pop(tag, None)


def _values(image: Image.Image, stored: str) -> tuple[int, int] | None:
    if image.mode.startswith("I"):
        low, high = np.asarray(image).min(), np.asarray(image).max()
        return int(low), int(high)
    if ";16" not in stored:
        return None
    # Pillow keeps the upper 8 of 16 bits where there are several channels.
    colors = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        colors = colors[..., :-1]
    return 256 * int(colors.min()), 256 * int(colors.max()) + 255


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
