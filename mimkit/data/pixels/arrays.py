"""Images that Pillow cannot hold: arrays of numpy, and TIFF of several channels or pages."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import tokenize
from collections.abc import Iterator
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimkit.data.pixels.form import RGB, Form
from mimkit.data.pixels.raster import Raster
from mimkit.data.pixels.unreadable import FAILURES, MisfitError, UnreadableError

NPY: Final = b"\x93NUMPY"
TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE: Final = 65_535
_LUMA: Final = np.array((0.299, 0.587, 0.114), np.float32)
"""Grey of red, green and blue, as Pillow's. Source: ITU-R BT.601."""
_UPRIGHT: Final = 1
_ORIENTATION: Final = 274


def read_npy(content: bytes) -> NDArray[Any]:
    """Reads one array of numpy; never what was pickled.

    Raises: UnreadableError if that fails.
    """
    try:
        file = BytesIO(content)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version > (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        # Memory is taken for what the header says, so that is held against the file first.
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
            raise UnreadableError("is cut, or holds pickled Python, which is never opened")
        array: NDArray[Any] = np.load(BytesIO(content), allow_pickle=False)
    except (*FAILURES, tokenize.TokenError) as error:
        raise UnreadableError(f"cannot be read as an array of numpy: {error}") from error
    return array


def read_tiff(content: bytes) -> NDArray[Any]:
    """Reads a TIFF, all of its pages and channels: (H, W, B) in the type it is stored in.

    Raises: UnreadableError if that fails, or tifffile is not installed.
    """
    try:
        tifffile: Any = importlib.import_module("tifffile")
    except ImportError as error:
        raise UnreadableError(
            "is a TIFF that Pillow does not read, or not in full; tifffile may, which is not "
            "installed: pip install 'mimkit[tiff]'"
        ) from error
    try:
        with _silent("tifffile"), tifffile.TiffFile(BytesIO(content)) as file:
            series = file.series[0]
            orientation = series.pages[0].tags.get(_ORIENTATION)
            if orientation is not None and orientation.value != _UPRIGHT:
                raise UnreadableError(
                    f"is turned (Orientation {orientation.value}), which is not undone in a TIFF "
                    "of this kind"
                )
            down, right = series.axes.index("Y"), series.axes.index("X")
            pixels = series.shape[down] * series.shape[right]
            if not 0 < pixels <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                raise UnreadableError(f"has an impossible size: {series.shape}")
            array: NDArray[Any] = np.moveaxis(series.asarray(), (down, right), (0, 1))
            return array.reshape(*array.shape[:2], -1)
    except (*FAILURES, tifffile.TiffFileError, RuntimeError) as error:
        raise UnreadableError(f"cannot be decoded: {error}") from error


@contextlib.contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Keeps a package from writing to the terminal what is told of the file in one line."""
    log = logging.getLogger(logger)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def laid_out(array: NDArray[Any], channels: int) -> NDArray[Any]:
    """Finds the axis of channels, which is the last or the first: (H, W, B).

    Raises: MisfitError if the array has another shape.
    """
    if array.ndim == 2:
        return array[:, :, None]
    usable = {channels, 1, RGB} if channels in (1, RGB) else {channels}
    if array.ndim == 3:
        # Where both would do, the last, as image files have it; of these the wanted number first.
        for count in sorted(usable, key=lambda each: each != channels):
            if array.shape[2] == count:
                return array
            if array.shape[0] == count:
                return np.moveaxis(array, 0, 2)
    raise MisfitError(
        f"has the shape {array.shape}, but data.channels is {channels}: it must be (height, width, "
        f"{channels}) or ({channels}, height, width)"
    )


def rasterised(array: NDArray[Any], form: Form) -> Raster:
    """Makes an image of stored values.

    Args:
        array: (H, W, B) of any type of numbers.
        form: what to make of it.

    Raises: MisfitError if it has another number of channels; UnreadableError if its values are no
        finite numbers.
    """
    array = _in_channels(array, form.channels)
    kind = array.dtype.kind
    if not array.size:
        raise UnreadableError(f"holds no pixels: {array.shape}")
    if kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
    elif kind == "f" and form.range == "type":
        raise UnreadableError("holds floating-point pixels, whose range is unknown")
    elif kind not in "iuf":
        raise UnreadableError(f"holds {array.dtype} and not numbers")
    elif array.dtype != np.uint8 and form.range == "type":
        whole = array.astype(np.int64).clip(0, _WHITE)
        array = ((whole * 255 + _WHITE // 2) // _WHITE).astype(np.uint8)
    if array.dtype == np.uint8 and not isinstance(form.range, tuple):
        return Raster.of(array)
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise UnreadableError(
            f"holds {count:,} values that are no finite numbers (NaN, Inf or beyond float32); "
            "write a number in their place"
        )
    return Raster.of(values)


def _in_channels(array: NDArray[Any], channels: int) -> NDArray[Any]:
    count = array.shape[2]
    if count == channels:
        return array
    if count == 1 and channels == RGB:
        return np.repeat(array, RGB, axis=2)
    if count == RGB and channels == 1:
        grey = array.astype(np.float32) @ _LUMA
        return (grey.round().astype(array.dtype) if array.dtype.kind in "iu" else grey)[..., None]
    raise MisfitError(f"has {count} channels, but data.channels is {channels}")
