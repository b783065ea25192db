"""What every judged image scored: kept with a number, so that its error can be told from seeds'."""

import base64
import binascii
import zlib
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.errors import DataError

_NUMBERS: Final = "numbers"


def pack(points: Tensor, out_of: int = 1) -> str:
    """Writes down the points of each image, two bits of text for each that has 0 or 1.

    >>> unpack(pack(torch.tensor([True, False, True, True])))
    array([1., 0., 1., 1.])

    Args:
        points: (m,) bool or integers from 0 to ``out_of``, one for each judged image, in ascending
            order of their numbers in the split.
        out_of: the most that an image can have, at most 65,535.

    Returns: text for `mimkit.evaluate.base.Result.image_scores`.
    """
    array = points.detach().cpu().to(torch.int64).numpy().astype(_type(out_of))
    return f"{out_of}:{base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()}"


def pack_numbers(values: Tensor) -> str:
    """Writes down any number of each image, with the precision of float32.

    >>> unpack(pack_numbers(torch.tensor([0.25, -1.5])))
    array([ 0.25, -1.5 ])

    Args:
        values: (m,) float, one for each judged image, in ascending order of their numbers.
    """
    array = values.detach().cpu().numpy().astype("<f4")
    return f"{_NUMBERS}:{base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()}"


def unpack(text: str) -> NDArray[np.float64]:
    """Reads what `pack` wrote: (m,), the share of its points that each image has; or the numbers.

    Raises: DataError if it is damaged.
    """
    try:
        out_of, _, packed = text.partition(":")
        if out_of == _NUMBERS:
            numbers = zlib.decompress(base64.b64decode(packed, validate=True))
            return np.frombuffer(numbers, "<f4").astype(np.float64)
        if int(out_of) < 1:
            raise ValueError(f"points out of {out_of}")
        stored = zlib.decompress(base64.b64decode(packed, validate=True))
        points = np.frombuffer(stored, _type(int(out_of)))
        return points.astype(np.float64) / int(out_of)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise DataError(
            f"image_scores must be what mimkit wrote, but is '{text[:30]}...' ({error}). Remove "
            "results.json, then repeat the command that made it."
        ) from error


def _type(out_of: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u1" if out_of < 2**8 else "<u2")
