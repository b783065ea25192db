"""What stands in files of masks: an id for every pixel, and what the ids stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimkit.data.pixels.unreadable import FAILURES, UnreadableError
from mimkit.data.truth.records import IGNORED

NUM_IDS: Final = 256
_VOID: Final = 255
"""The id that, by custom, is not judged."""


def read_ids(content: bytes) -> NDArray[np.uint8]:
    """Decodes a mask: grey levels, or places in the palette, are ids.

    Shape: (H, W) uint8.
    Raises: UnreadableError if it is no image, or holds colours or more than 256 ids.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            values = np.asarray(image)
    except FAILURES as error:
        raise UnreadableError(f"cannot be decoded: {error}") from error
    if values.ndim == 3:
        grey = values.shape[2] == 2 or (values[..., :3] == values[..., :1]).all()
        if not grey:
            raise UnreadableError("holds colours, but must hold ids: grey levels, or a palette")
        values = values[..., 0]
    if values.dtype != bool and values.size and not 0 <= values.min() <= values.max() < NUM_IDS:
        raise UnreadableError(f"holds ids up to {values.max()}, but {NUM_IDS - 1} is the greatest")
    return values.astype(np.uint8)


@dataclass(frozen=True)
class Numbering:
    """Which class each id is.

    Args:
        classes: names, in the order of their ids.
        codes: (256,) int64, the class of each id, ``IGNORED`` for none.
        ignored: ids that occur and are not judged.
        strangers: those among them of which nobody said so.
    """

    classes: tuple[str, ...]
    codes: NDArray[np.int64]
    ignored: tuple[int, ...]
    strangers: tuple[int, ...]


def number(
    occurs: NDArray[np.bool_], names: Sequence[str] | None, ignore: Sequence[int] | None
) -> Numbering:
    """Says which class each id is.

    Ids without a name are ignored where others have one. Without names every id that occurs is a
    class of its own. 255 is ignored unless it has a name, or only 0 occurs beside it, which is how
    masks of one thing are painted. Of two names it then has the second.

    >>> number(np.isin(np.arange(256), [0, 255]), None, None).classes
    ('0', '255')
    >>> number(np.isin(np.arange(256), [0, 255]), ["background", "leaf"], None).codes[255]
    np.int64(1)

    Args:
        occurs: (256,) which ids there are, in all splits.
        names: of the ids from 0 on; None if they are not known.
        ignore: ids that are not judged; None for 255.
    """
    there = set(np.flatnonzero(occurs).tolist())
    if ignore is None and names is not None and len(names) == 2 and there == {0, _VOID}:
        painted = np.full(NUM_IDS, IGNORED, dtype=np.int64)
        painted[[0, _VOID]] = 0, 1
        return Numbering(tuple(names), painted, ignored=(), strangers=())
    void = {_VOID} if ignore is None and there != {0, _VOID} else set(ignore or ())
    ids = range(min(len(names), NUM_IDS)) if names is not None else sorted(there)
    kept = [each for each in ids if each not in void or (names is not None and ignore is None)]
    codes = np.full(NUM_IDS, IGNORED, dtype=np.int64)
    codes[kept] = np.arange(len(kept))
    ignored = tuple(sorted(there - set(kept)))
    return Numbering(
        classes=tuple(str(each) if names is None else names[each] for each in kept),
        codes=codes,
        ignored=ignored,
        strangers=tuple(each for each in ignored if each not in void),
    )
