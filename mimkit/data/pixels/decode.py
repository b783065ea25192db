"""Image files to rasters, whatever they are stored in."""

import contextlib
import functools
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from mimkit.data.pixels.arrays import NPY, TIFF, laid_out, rasterised, read_npy, read_tiff
from mimkit.data.pixels.form import RGB, Form
from mimkit.data.pixels.metadata import without_metadata
from mimkit.data.pixels.raster import Raster
from mimkit.data.pixels.unreadable import FAILURES, MisfitError, UnreadableError

EIGHT_BIT: Final = Form(range="type")
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SHRINKS: Final = (1, 2, 4, 8)
"""How many times smaller JPEG can be decoded."""
_ORIENTATION: Final = 0x0112
_SAMPLES: Final = 0x0115
"""How many channels a TIFF stores."""
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


@dataclass(frozen=True)
class Look:
    """An image file as it was found.

    Args:
        image: upright, with stored values; JPEG may be smaller than it is stored.
        size: height and width as it is stored, upright.
        values: the least and the greatest stored value, where more than 8 bits became 8.
    """

    image: Raster
    size: tuple[int, int]
    values: tuple[int, int] | None = None


def decode(content: bytes, shrink: int = 1, form: Form = EIGHT_BIT) -> Raster:
    """Decodes an image file, upright; see `look`.

    Raises: UnreadableError if that fails.
    """
    return look(content, shrink, form).image


def measure(content: bytes, form: Form = EIGHT_BIT) -> tuple[int, int]:
    """Returns height and width as `decode` would give them, having read the image to its end.

    JPEG is decoded at an eighth of its size, which is cheaper and finds what is cut as well.

    Raises: UnreadableError if `decode` would fail.
    """
    return look(content, SHRINKS[-1], form).size


def look(content: bytes, shrink: int = 1, form: Form = EIGHT_BIT) -> Look:
    """Decodes an image file, upright.

    The first frame of several, but all pages of a TIFF that has one for each channel; turned as its
    EXIF orientation says, of which only the values 1 to 8 mean anything. Values are those that are
    stored: in 8 bits, or in float32 if they take more. For three channels, and for one, which is
    the grey of three, transparent pixels are shown on white, and any 8-bit mode is converted by
    Pillow. Pixels come first: EXIF, texts or colour profiles that cannot be read, or are too large
    for Pillow, are left out.

    Args:
        content: the file.
        shrink: JPEG is decoded at 1/2, 1/4 or 1/8 of its size (rounded up), where that is no
            smaller than one in ``shrink``: several times faster for photographs.
        form: what to make of it; by default 8-bit RGB, 16-bit grey being scaled to 8.

    Raises: UnreadableError if that fails, MisfitError if the image has other channels.
    """
    if not content:
        raise UnreadableError("is empty")
    if content.startswith(NPY):
        return _whole(rasterised(laid_out(read_npy(content), form.channels), form))
    with warnings.catch_warnings():
        # Odd metadata and large sizes are no reason to bother anyone, or to stop.
        warnings.simplefilter("ignore")
        try:
            return _look(content, shrink, form)
        except FAILURES as error:
            for bare in without_metadata(content):
                with contextlib.suppress(*FAILURES):
                    return _look(bare, shrink, form)
            unknown = isinstance(error, UnidentifiedImageError) or "raw mode" in str(error)
            if content.startswith(TIFF) and unknown:
                return _whole(rasterised(read_tiff(content), form))
            if isinstance(error, UnidentifiedImageError):
                raise UnreadableError("is no image of a known kind") from error
            raise UnreadableError(f"cannot be decoded: {error}") from error


def _whole(image: Raster) -> Look:
    return Look(image, (image.height, image.width))


def _look(content: bytes, shrink: int, form: Form) -> Look:
    image = Image.open(BytesIO(content), formats=_formats())
    stored = str(image.tile[0].args) if image.tile else ""
    if image.format == "TIFF":
        _forget_links(image)
        if _loses(image, stored, form):
            return _whole(rasterised(read_tiff(content), form))
    width, height = image.size
    smaller = max(1, width // shrink), max(1, height // shrink)
    shrunk = shrink > 1 and image.draft("RGB", smaller) is not None
    stored = str(image.tile[0].args) if image.tile else ""
    image.load()
    if not shrunk:
        width, height = image.size
    values = _values(image, stored, form)
    turn = _turn(image)
    if turn in _SIDEWAYS:
        width, height = height, width
    pages = _pages(image, form) if image.format == "TIFF" else [image]
    upright = [page if turn is None else page.transpose(turn) for page in pages]
    return Look(_to_raster(upright, form), (height, width), values)


def _loses(image: Image.Image, stored: str, form: Form) -> bool:
    """Whether Pillow would leave out channels of a TIFF, or the lower 8 of 16 bits."""
    bands, samples = len(image.getbands()), image.getexif().get(_SAMPLES, 1)
    if bands > 1 and ";16" in stored and form.range != "type":
        return True
    # Beside red, green and blue there may be one that nobody knows.
    return samples != bands and not (form.channels in (1, RGB) and bands >= RGB)


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


def _values(image: Image.Image, stored: str, form: Form) -> tuple[int, int] | None:
    if _is_deep(image) and form.range != "type":
        return None
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


def _is_deep(image: Image.Image) -> bool:
    """Whether a value takes more than 8 bits: 16, in 16 or 32, or floating point."""
    return image.mode == "F" or image.mode.startswith("I")


def _pages(image: Image.Image, form: Form) -> list[Image.Image]:
    """Gives the page of a TIFF, or all of them where each is a channel."""
    count = getattr(image, "n_frames", 1)
    if form.channels == 1 or count != form.channels or len(image.getbands()) > 1:
        return [image]
    pages = []
    for number in range(count):
        image.seek(number)
        pages.append(image.copy())
    if len({page.size for page in pages}) > 1:
        raise UnreadableError("has pages of several sizes")
    return pages


def _to_raster(pages: list[Image.Image], form: Form) -> Raster:
    image = pages[0]
    if len(pages) > 1:
        greys = [page if _is_deep(page) else page.convert("L") for page in pages]
        return rasterised(np.stack([np.asarray(page) for page in greys], axis=2), form)
    if _is_deep(image):
        return rasterised(np.asarray(image)[:, :, None], form)
    if isinstance(form.range, tuple):
        eight = _to_raster(pages, Form(form.channels))
        return rasterised(np.asarray(eight), form)
    if form.channels == RGB:
        return Raster((_to_rgb(image),))
    if form.channels == 1:
        return Raster((_to_rgb(image).convert("L"),))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if len(image.getbands()) != form.channels:
        count = getattr(image, "n_frames", 1)
        of_pages = f", {count} pages" if count > 1 else ""
        raise MisfitError(
            f"has {len(image.getbands())} channels ({image.mode}{of_pages}), but data.channels is "
            f"{form.channels}"
        )
    return Raster(image.split())


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
