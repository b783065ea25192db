"""Regions of pixels as COCO's runs, by the functions of faster-coco-eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from mimkit.data.truth.records import Rle

if TYPE_CHECKING:
    from types import ModuleType

_LEAST: Final = 6
"""Numbers of a polygon: three corners."""


class UnusableError(Exception):
    """An object or its outline cannot be used; the text says why, of several."""


def region_of(raw: Any, height: int, width: int) -> Rle | None:
    """Reads the ``segmentation`` of an object: polygons, or runs, compressed or not.

    Returns: None where there is none.
    Raises: UnusableError if it cannot be read, or covers no pixel.
    """
    if raw is None or raw == []:
        return None
    try:
        region = _polygons(raw, height, width) if isinstance(raw, list) else _runs(raw)
        if region["size"] != [height, width]:
            raise UnusableError("have an outline made for another size of image")
        # Decoding checks the runs: what files say of them need not be so.
        covers = bool(_mask().decode(region).any())
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UnusableError("have an outline that cannot be read") from error
    if not covers:
        raise UnusableError("have an outline around nothing")
    return region


def encode(masks: NDArray[np.bool_]) -> list[Rle]:
    """Compresses masks.

    Shape: masks (k, H, W).
    """
    columns = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    return cast(list[Rle], _mask().encode(columns)) if len(masks) else []


def decode(regions: tuple[Rle, ...] | list[Rle], height: int, width: int) -> NDArray[np.bool_]:
    """Unfolds regions to masks.

    Shape: (k, height, width).
    """
    if not regions:
        return np.zeros((0, height, width), dtype=np.bool_)
    found: NDArray[np.uint8] = _mask().decode(list(regions))
    return found.transpose(2, 0, 1).astype(np.bool_)


def box_of(region: Rle) -> tuple[float, float, float, float]:
    """Gives left, top, width and height of a region."""
    left, top, wide, high = (float(side) for side in _mask().toBbox(region))
    return left, top, wide, high


def size_of(region: Rle) -> float:
    """Counts the pixels of a region."""
    return float(_mask().area(region))


def _polygons(raw: list[Any], height: int, width: int) -> Rle:
    found = []
    for one in raw:
        corners = np.asarray(one, dtype=np.float64)
        if corners.ndim != 1 or len(corners) % 2 or not np.isfinite(corners).all():
            raise UnusableError("have an outline that cannot be read")
        if len(corners) >= _LEAST:
            # The library walks along every pixel of an edge, also far outside.
            x = corners[0::2].clip(-width, 2 * width)
            y = corners[1::2].clip(-height, 2 * height)
            found.append(np.stack([x, y], axis=1).ravel().tolist())
    if not found:
        raise UnusableError("have an outline of fewer than three corners")
    return cast(Rle, _mask().merge(_mask().frPyObjects(found, height, width)))


def _runs(raw: Any) -> Rle:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("size"), list):
        raise UnusableError("have an outline that cannot be read")
    size, counts = [int(side) for side in raw["size"]], raw.get("counts")
    if isinstance(counts, list):
        runs = [int(run) for run in counts]
        if len(size) != 2 or min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
            raise UnusableError("have an outline that cannot be read")
        return cast(Rle, _mask().frPyObjects({"size": size, "counts": runs}, *size))
    if not isinstance(counts, str):
        raise UnusableError("have an outline that cannot be read")
    return {"size": size, "counts": counts.encode("ascii", "strict")}


def _mask() -> ModuleType:
    import faster_coco_eval.core.mask as library  # noqa: PLC0415 -- slow to import

    return cast("ModuleType", library)
