"""COCO's JSON of objects, read and checked: boxes, classes and outlines of each image."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Skipped
from mimkit.data.truth.records import Rle
from mimkit.data.truth.regions import UnusableError, box_of, region_of, size_of

_KEYS: Final = ("images", "annotations", "categories")
_SNIFFED: Final = 2**16
_SHOWN: Final = 5
SLACK: Final = 1.0
"""Pixels by which a box may reach outside without being told: files round."""


class NotCocoError(Exception):
    """A file or column does not tell of objects; the text says why."""


@dataclass(frozen=True)
class Parsed:
    """What a file says of n images and m objects, those of one image in a row.

    Args:
        classes: their names, in the order of their ids.
        files: the names of the images, as written.
        sizes: heights and widths.
        starts: where each image's objects begin, and m.
        boxes: left, top, right and bottom in pixels, inside the image.
        labels: of ``classes``.
        crowd: whether one stands for many.
        areas: in pixels.
        regions: the compressed runs of each; None where not every object has an outline.
        skipped: what is not as it must be.
        note: what people must know of the outlines, or nothing.

    Shape: sizes (n, 2) int32, starts (n + 1,) int64, boxes (m, 4) float32, labels (m,) int64,
        crowd (m,) bool, areas (m,) float32.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    sizes: NDArray[np.int32]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    regions: tuple[bytes, ...] | None
    skipped: tuple[Skipped, ...]
    note: str


@dataclass(frozen=True)
class _Object:
    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float
    region: Rle | None


class _Problems:
    """What is not as it must be, counted by reason."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.by_reason: dict[tuple[str, str], list[str]] = {}

    def add(self, kind: str, name: object, reason: str) -> None:
        self.by_reason.setdefault((kind, reason), []).append(f"{name!s:.60}")

    def listed(self) -> tuple[Skipped, ...]:
        found = []
        for (kind, reason), names in self.by_reason.items():
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            found.append(Skipped(f"{self.where}: {len(names):,} of its {kind} ({shown})", reason))
        return tuple(found)


def looks_like_coco(path: Path) -> bool:
    """Whether a file begins as a JSON of objects may; a look at its first 64 KiB."""
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED)
    except OSError:
        return False
    keys = (*_KEYS, "info", "licenses")
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(
        f'"{key}"'.encode() in start for key in keys
    )


def parse(path: Path) -> Parsed:
    """Reads a JSON of objects.

    Raises: NotCocoError if the file is none; OSError if it cannot be read.
    """
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotCocoError(f"it is no JSON ({error!s:.100})") from error
    return parse_tree(tree, str(path))


def parse_tree(tree: Any, where: str) -> Parsed:
    """Reads a tree of objects.

    Objects of classes or images that are not listed, without area, or with an outline that cannot
    be read are left out and counted; boxes that reach outside of their image are cut.

    Args:
        tree: with lists ``images``, ``annotations`` and ``categories``.
        where: it comes from, in words.

    Raises: NotCocoError if it is none.
    Source: the format of COCO, arXiv 1405.0312, cocodataset.org/#format-data.
    """
    if not isinstance(tree, dict):
        raise NotCocoError("its outermost value is no object")
    for key in _KEYS:
        if not isinstance(tree.get(key), list):
            raise NotCocoError(f"it has no list '{key}'")
    if tree["annotations"] and not any(
        isinstance(one, Mapping) and ("bbox" in one or "segmentation" in one)
        for one in tree["annotations"]
    ):
        raise NotCocoError("none of its annotations has a 'bbox' or a 'segmentation'")
    problems = _Problems(where)
    classes, labels = _classes(tree["categories"], problems)
    files, sizes, numbers = _images(tree["images"], problems)
    by_image: list[list[_Object]] = [[] for _ in files]
    for one in tree["annotations"]:
        name = one.get("id", "?") if isinstance(one, Mapping) else one
        try:
            image, known, cut = _object(one, numbers, sizes, labels)
        except UnusableError as error:
            problems.add("annotations", name, str(error))
            continue
        if cut:
            problems.add("annotations", name, "reach outside of their image and are cut")
        by_image[image].append(known)
    objects = [one for each in by_image for one in each]
    outlined = sum(one.region is not None for one in objects)
    regions, note = None, ""
    if outlined == len(objects) > 0:
        regions = tuple(one.region["counts"] for one in objects if one.region is not None)
    elif outlined:
        note = f"outlines are not used: only {outlined:,} of {len(objects):,} objects have one"
    return Parsed(
        classes=classes,
        files=files,
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        starts=np.cumsum([0, *map(len, by_image)], dtype=np.int64),
        boxes=np.array([one.box for one in objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([one.label for one in objects], dtype=np.int64),
        crowd=np.array([one.crowd for one in objects], dtype=np.bool_),
        areas=np.array([one.area for one in objects], dtype=np.float32),
        regions=regions,
        skipped=problems.listed(),
        note=note,
    )


def _classes(
    categories: Sequence[Any], problems: _Problems
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Names the classes, in the order of their ids, and numbers the ids."""
    names: dict[int | str, str] = {}
    for one in categories:
        key = _key(one, "id")
        if key is None or not isinstance(one.get("name"), str):
            problems.add("categories", one, "have no id or no name")
        else:
            names.setdefault(key, one["name"])
    ordered = sorted(names, key=lambda key: (isinstance(key, str), key))
    classes = tuple(dict.fromkeys(names[key] for key in ordered))
    return classes, {key: classes.index(names[key]) for key in ordered}


def _images(
    images: Sequence[Any], problems: _Problems
) -> tuple[tuple[str, ...], list[tuple[int, int]], dict[int | str, int]]:
    """Gives names, heights and widths, and numbers the ids."""
    numbers: dict[int | str, int] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for one in images:
        key = _key(one, "id")
        if key is None or not isinstance(one.get("file_name"), str):
            problems.add("images", one, "have no id or no file_name")
            continue
        size = one.get("height"), one.get("width")
        name = one["file_name"].replace("\\", "/")
        if not all(isinstance(side, int) and 0 < side < 2**31 for side in size):
            problems.add("images", name, "have no height or no width")
        elif key in numbers or name in sizes:
            problems.add("images", name, "are listed twice; the first counts")
        else:
            numbers[key] = len(sizes)
            sizes[name] = size
    return tuple(sizes), list(sizes.values()), numbers


def _object(
    one: Any,
    numbers: Mapping[int | str, int],
    sizes: Sequence[tuple[int, int]],
    labels: Mapping[int | str, int],
) -> tuple[int, _Object, bool]:
    """Gives image, object and whether its box was cut.

    Raises: UnusableError if it must be left out.
    """
    image, label = _key(one, "image_id"), _key(one, "category_id")
    if image is None or image not in numbers:
        raise UnusableError("are of an image that the file does not list")
    if label is None or label not in labels:
        raise UnusableError("are of a category that the file does not list")
    height, width = sizes[numbers[image]]
    region = region_of(one.get("segmentation"), height, width)
    box = _box(one.get("bbox"))
    if box is None and one.get("bbox"):
        raise UnusableError("have a bbox that is not four finite numbers")
    if box is None:
        if region is None:
            raise UnusableError("have neither bbox nor segmentation")
        box = box_of(region)
    left, top, wide, high = box
    if wide <= 0 or high <= 0:
        raise UnusableError("have an empty box")
    right, bottom = min(left + wide, width), min(top + high, height)
    cut = left < -SLACK or top < -SLACK
    cut = cut or left + wide > width + SLACK or top + high > height + SLACK
    left, top = max(left, 0.0), max(top, 0.0)
    if right <= left or bottom <= top:
        raise UnusableError("lie outside of their image")
    area = one.get("area")
    if type(area) not in (int, float) or not math.isfinite(area) or area <= 0:
        area = (right - left) * (bottom - top) if region is None else size_of(region)
    crowd = bool(one.get("iscrowd", 0))
    known = _Object((left, top, right, bottom), labels[label], crowd, float(area), region)
    return numbers[image], known, cut


def is_box(raw: object) -> bool:
    """Whether a value is four finite numbers."""
    return _box(raw) is not None


def _box(raw: object) -> tuple[float, float, float, float] | None:
    match raw:
        case [int() | float(), int() | float(), int() | float(), int() | float()]:
            left, top, wide, high = map(float, raw)
            finite = all(map(math.isfinite, (left, top, wide, high)))
            return (left, top, wide, high) if finite else None
    return None


def _key(one: object, name: str) -> int | str | None:
    key = one.get(name) if isinstance(one, Mapping) else None
    return key if isinstance(key, int | str) else None
