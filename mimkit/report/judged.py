"""Sheets of what evaluations left to be looked at: the same test images, a column each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimkit.errors import DataError
from mimkit.evaluate.shown import COLOURS, IMAGE, TRUTH
from mimkit.report.findings import Outcome, Study
from mimkit.report.sheet import Column, contact_sheet

NAMES: Final = "judged_*.png"
"""How the files are called."""
_COLOUR: Final = re.compile(r"#[0-9a-f]{6}")
_WHITE: Final = 255
_WIDTHS: Final = {2: 320, 3: 256, 4: 224}
"""Of a column in pixels, by how many there are; more columns are narrower still."""
_NARROW: Final = 176
_ORDER: Final = (IMAGE, TRUTH, "pretrained")


@dataclass(frozen=True)
class _Sheet:
    """Pictures of one evaluation, by column and number of the image."""

    name: str
    columns: Mapping[str, Mapping[str, Path]]
    colours: Path


def shown_runs(study: Study) -> list[Outcome]:
    """Gives one finished run of each method, all of one seed if there is such a seed."""
    finished = {one.cell: one for one in study.finished}
    labels = study.labels

    def seeds(label: str) -> list[int]:
        return [cell.seed for cell in finished if cell.method == label]

    shared = [seed for seed in study.seeds if all(seed in seeds(label) for label in labels)]
    return [
        next(one for cell, one in finished.items() if cell.method == label and cell.seed == seed)
        for label in labels
        for seed in (shared or seeds(label))[:1]
    ]


def draw_judged(study: Study) -> None:
    """Writes ``pictures/judged_NUMBER-NAME.png`` for every evaluation that left pictures.

    Args:
        study: a run, whose starts stand side by side, or a comparison, whose methods do.

    Raises: DataError if a picture is damaged.
    """
    for sheet in _of_run(study.folder) if study.is_run else _of_methods(shown_runs(study)):
        path = study.folder / "pictures" / f"judged_{sheet.name}.png"
        sources = [one for column in sheet.columns.values() for one in column.values()]
        newest = max(one.stat().st_mtime_ns for one in sources)
        if not path.is_file() or path.stat().st_mtime_ns < newest:
            path.parent.mkdir(exist_ok=True)
            _draw(sheet, path)


def _of_run(folder: Path) -> list[_Sheet]:
    # What was judged later lies in a folder for each data.
    places = {"": folder, **{f"{p.name}_": p for p in sorted(folder.glob("judgements/[0-9]*-*"))}}
    return [
        _Sheet(f"{before}{shown.parent.name}", _columns(shown), shown / COLOURS)
        for before, place in places.items()
        for shown in sorted(place.glob("evaluations/[0-9]*-*/shown"))
    ]


def _of_methods(chosen: Sequence[Outcome]) -> list[_Sheet]:
    """Takes image and truth from the first method, and what each method's encoder answers."""
    found: dict[str, dict[str, Mapping[str, Path]]] = {}
    colours: dict[str, Path] = {}
    for outcome in chosen:
        for sheet in _of_run(outcome.folder):
            if IMAGE not in sheet.columns or "pretrained" not in sheet.columns:
                continue
            first = {name: sheet.columns[name] for name in (IMAGE, TRUTH) if name in sheet.columns}
            columns = found.setdefault(sheet.name, first)
            colours.setdefault(sheet.name, sheet.colours)
            columns[outcome.cell.method] = sheet.columns["pretrained"]
    return [_Sheet(name, columns, colours[name]) for name, columns in found.items()]


def _columns(shown: Path) -> dict[str, Mapping[str, Path]]:
    found = {
        folder.name: {path.stem: path for path in sorted(folder.glob("*.png"))}
        for folder in shown.iterdir()
        if folder.is_dir()
    }
    rank = {name: place for place, name in enumerate(_ORDER)}
    return {name: found[name] for name in sorted(found, key=lambda n: (rank.get(n, len(rank)), n))}


def _draw(sheet: _Sheet, path: Path) -> None:
    numbers = [set(column) for column in sheet.columns.values()]
    shared = sorted(set.intersection(*numbers), key=int)
    if not shared:
        return
    pictures = {
        title: [_read(column[number]) for number in shared]
        for title, column in sheet.columns.items()
    }
    every = [picture for of_column in pictures.values() for picture in of_column]
    frame = max(p.shape[1] for p in every), max(p.shape[2] for p in every)
    columns = [
        Column(title, torch.stack([_framed(picture, frame) for picture in of_column]) / _WHITE)
        for title, of_column in pictures.items()
    ]
    name = sheet.name.rpartition("-")[2].replace("_", " ")
    answers = ", ".join(title for title in sheet.columns if title not in (IMAGE, TRUTH))
    contact_sheet(
        path,
        columns,
        None,
        description=f"{name}: test images, what is true of them, and the answers of {answers}.",
        column_width=_WIDTHS.get(len(columns), _NARROW),
        colours=_colours(sheet.colours),
    )


def _colours(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): _COLOUR.fullmatch(str(tone))[0] for name, tone in held.items()}  # type: ignore[index]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: must give each name a colour as #rrggbb, but cannot be read ({error}). "
            "Remove it."
        ) from error


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(
            f"{path}: must be a picture, but cannot be read ({error}). Remove it."
        ) from error
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _framed(picture: Tensor, frame: tuple[int, int]) -> Tensor:
    """Puts a picture of any size into the middle of a white frame."""
    height, width = picture.shape[1:]
    full = torch.full((3, *frame), _WHITE, dtype=torch.uint8)
    top, left = (frame[0] - height) // 2, (frame[1] - width) // 2
    full[:, top : top + height, left : left + width] = picture
    return full
