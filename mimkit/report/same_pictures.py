"""What every method makes of the same held-out images with the same region hidden."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import mimkit
from mimkit.console import headed
from mimkit.data import cache
from mimkit.data.opening import open_sources
from mimkit.data.source import Source
from mimkit.errors import DataError, MimkitError
from mimkit.files import sha256, write_atomic, write_json
from mimkit.folder import RunFolder
from mimkit.parts.encoder import Encoder
from mimkit.parts.patches import unpatchify
from mimkit.parts.records import Batch, Grid, Mask, View
from mimkit.parts.shapes import Axes
from mimkit.recipe.build import Parts, build
from mimkit.recipe.schema import Recipe, load
from mimkit.report.embed import MAX_PNG_BYTES
from mimkit.report.findings import Outcome, Study
from mimkit.report.judged import shown_runs
from mimkit.report.predictions import prediction_columns
from mimkit.report.region import NUM_IMAGES, fit_region, hidden_region
from mimkit.report.sheet import Column, contact_sheet, denormalise, masked_input
from mimkit.train.checkpoint import latest, restore_weights
from mimkit.train.encoder_file import load_encoder
from mimkit.train.step import Pretrainer

MAX_BYTES: Final = 3_000_000
"""All sheets together: they must fit into a report that stays easy to send."""
COLUMN_WIDTHS: Final = (192, 160, 136)
"""Tried in this order, in pixels, until the sheets are small enough; narrower ones tell nothing."""
BRIGHT: Final = 4.0
"""Attention that is shown brightest, as a multiple of an even share."""
_GLIMPSE: Final = 64
_FORMAT: Final = 1
"""Raised when the sheets change, so that those of old are drawn anew."""
_REFUSALS: Final = (MimkitError, RuntimeError, ValueError, IndexError)
"""What parts raise at a mask that they cannot take; torch's own errors are among them."""


def draw(study: Study, *, console: Console) -> None:
    """Writes ``pictures/<label>.png`` (large ones as .webp) and ``pictures/manifest.json``.

    Every method is shown the same images, evenly spaced over the held-out split, with the same
    region hidden: 30 % of the squares of the coarsest grid, drawn for each image from the study's
    first seed. Of each method the first seed is taken of which all are finished, else its own
    first finished one. Runs that are not comparable are left out. If nothing has changed since
    the last time, nothing is drawn. Nothing is trained.

    The manifest lists ``title``, ``file``, ``description`` and ``digest`` of each sheet.

    Args:
        study: whose runs are shown.
        console: is told what is drawn, and what cannot be.

    Raises: DataError if the disk is full.
    """
    pictures = study.folder / "pictures"
    chosen = shown_runs(study)
    digest = _digest(study, chosen)
    if _is_current(pictures, digest, len(chosen)):
        return
    console.print(headed("pictures", "the same images and masks for every method"))
    runs = [one for one in (_open(outcome, console) for outcome in chosen) if one is not None]
    sheets: list[_Sheet] = []
    if runs:
        coarsest = min((run.grid for run in runs), key=lambda grid: grid.num_patches)
        num_images = min(run.outcome.ledger["dataset"]["test_images"] for run in runs)
        # Evenly spaced: data sets often come sorted by class.
        count = min(NUM_IMAGES, num_images)
        index = torch.arange(count) * num_images // count
        region = hidden_region(coarsest, study.seeds[0])[:count]
        for run in runs:
            try:
                sheets.append(_sheet(run, coarsest, region, index, console))
            except _REFUSALS as error:
                _cannot(run.outcome, error, console)
    # What is missing may be there next time.
    whole = len(sheets) == len(chosen) and all(sheet.complete for sheet in sheets)
    _write(sheets, pictures, digest if whole else "")


@dataclass(frozen=True)
class _Run:
    outcome: Outcome
    recipe: Recipe

    @property
    def grid(self) -> Grid:
        data = self.recipe.data
        height, width = data.image_size
        return Grid(height // data.patch_size, width // data.patch_size, data.patch_size)


@dataclass(frozen=True)
class _Sheet:
    label: str
    title: str
    description: str
    columns: Sequence[Column]
    mask: Mask
    complete: bool


def _open(outcome: Outcome, console: Console) -> _Run | None:
    try:
        return _Run(outcome, load(str(RunFolder(outcome.folder).recipe)))
    except MimkitError as error:
        _cannot(outcome, error, console)
        return None


def _cannot(outcome: Outcome, error: Exception, console: Console) -> None:
    console.print(f"{outcome.cell}: no pictures. {error}", style="yellow", markup=False)


@torch.no_grad()
def _sheet(run: _Run, coarsest: Grid, region: Tensor, index: Tensor, console: Console) -> _Sheet:
    """Looks at the images as one method does."""
    recipe, path = run.recipe, run.outcome.folder
    train, test = open_sources(recipe.data)
    parts = build(recipe, mean=train.mean, std=train.std)
    views = {view.name: test.view(index, view) for view in parts.views}
    image = denormalise(views["image"], parts.views[0])
    pretrainer, missing = None, ""
    try:
        pretrainer = _trained(run, parts, train, console)
    except MimkitError as error:
        missing = f"What it predicts is not shown: {error}"

    def look(mask: Mask) -> list[Column]:
        if pretrainer is not None:
            return prediction_columns(pretrainer, Batch(views, mask, None, index), parts.views[0])
        return [Column("image", image), Column("what the encoder sees", masked_input(image, mask))]

    masked = fit_region(region, coarsest, run.grid)
    try:
        mask = parts.masker.mask_of(masked)
        columns = look(mask)
        notes = [_hidden_in_words(coarsest, region, run.grid, masked)]
    except _REFUSALS as error:
        mask = parts.masker.sample(len(index), torch.Generator().manual_seed(recipe.seed))
        columns = look(mask)
        notes = [
            "The images are the same for every method, but the masks of this one are its own, as "
            f"its parts cannot take the shared one: {error}"
        ]
    if any(column.correct is not None for column in columns):
        notes.append("Green frames are right, orange ones with a cross are wrong.")
    encoder = pretrainer.encoder if pretrainer is not None else load_encoder(path)
    attention = _attention(encoder, views["image"], run.grid)
    if attention is not None:
        columns.append(Column("attention, last block", _overlay(image, attention, run.grid)))
        notes.append(
            "Attention is that of the last block on the whole image, as a mean over heads: of the "
            "class token, or of all patches where there is none. Dark is none, brightest is "
            f"{BRIGHT:g} times an even share or more."
        )
    return _Sheet(
        label=run.outcome.cell.method,
        title=str(run.outcome.cell),
        description=" ".join(note for note in (*notes, missing) if note),
        columns=columns,
        mask=mask,
        complete=pretrainer is not None,
    )


def _hidden_in_words(coarsest: Grid, region: Tensor, grid: Grid, masked: Tensor) -> str:
    squares, patches = int(region[0].sum()), int(masked[0].sum())
    words = (
        f"The same {len(region)} held-out images with the same region hidden as for every other "
        f"method: {squares} of {coarsest.num_patches} squares, here {patches} of "
        f"{grid.num_patches} patches."
    )
    if grid.rows % coarsest.rows or grid.cols % coarsest.cols:
        words += (
            " The squares are no whole patches of this grid: those that the region covers most are "
            "hidden."
        )
    return words


def _trained(run: _Run, parts: Parts, train: Source, console: Console) -> Pretrainer:
    """Loads all weights of a finished run; what its targets prepared must be in the cache.

    Raises: DataError if it is not, or if the run has no whole checkpoint.
    """
    folder = RunFolder(run.outcome.folder)
    for target in parts.targets.values():
        target.prepare(
            _Glimpse(train, folder.path),
            cache.folder() / "prepared",
            device=torch.device("cpu"),
            say=lambda _: None,  # the log of the run has it
        )
    pretrainer = Pretrainer(parts)
    checkpoint = latest(folder.checkpoints, console.print)
    if checkpoint is None:
        raise DataError(f"{folder.checkpoints}: there must be a checkpoint, but there is none.")
    restore_weights(checkpoint, pretrainer)
    return pretrainer.eval()


class _Glimpse:
    """The training images, of which only a few may be looked at: too few to be trained on."""

    def __init__(self, source: Source, run: Path) -> None:
        self.source = source
        self.run = run
        self.num_left = _GLIMPSE

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def view(self, index: Tensor, view: View) -> Tensor:
        self.num_left -= len(index)
        if self.num_left < 0:
            raise DataError(
                f"what was prepared before training is no longer in {cache.folder()}, and is not "
                f"made again for pictures alone. To make it: mimkit run {self.run}"
            )
        return self.source.view(index, view)


def _attention(encoder: Encoder, image: Tensor, grid: Grid) -> Tensor | None:
    attention = encoder.attention(image)
    if attention is not None:
        axes = Axes(B=len(image), N=grid.num_patches)
        axes.check("the encoder's attention", attention, "B N")
    return attention


def _overlay(image: Tensor, attention: Tensor, grid: Grid) -> Tensor:
    """Lays attention as a colour over the grey image.

    Shape: image (B, C, H, W) in [0, 1], attention (B, N); (B, 3, H, W).
    """
    level = (attention * grid.num_patches / BRIGHT).clamp(0, 1)
    rgba = matplotlib.colormaps["inferno"](level.cpu().numpy())  # (B, N, 4)
    colour = torch.from_numpy(rgba[..., :3]).float()[..., None, None]
    size = grid.patch_size
    heat = unpatchify(colour.expand(-1, -1, -1, size, size).contiguous(), grid)
    return torch.lerp(image.mean(dim=1, keepdim=True).expand_as(heat), heat, 0.6)


def _write(sheets: Sequence[_Sheet], pictures: Path, digest: str) -> None:
    """Writes all sheets with columns of one width, and removes what earlier ones left."""
    pictures.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for width in COLUMN_WIDTHS:
        files = [_save(sheet, pictures, width) for sheet in sheets]
        if sum(file.stat().st_size for file in files) <= MAX_BYTES:
            break
    write_json(
        pictures / "manifest.json",
        [
            {
                "title": sheet.title,
                "file": file.name,
                "description": sheet.description,
                "digest": digest,
            }
            for sheet, file in zip(sheets, files, strict=True)
        ],
    )
    for suffix in ("png", "webp"):
        for file in set(pictures.glob(f"*.{suffix}")) - set(files):
            file.unlink()


def _save(sheet: _Sheet, pictures: Path, width: int) -> Path:
    path = pictures / f"{sheet.label}.png"
    contact_sheet(
        path, sheet.columns, sheet.mask, description=sheet.description, column_width=width
    )
    if path.stat().st_size <= MAX_PNG_BYTES:
        return path
    dense = path.with_suffix(".webp")
    with Image.open(path) as image:
        write_atomic(dense, lambda file: image.save(file, "WEBP", quality=82))
    return dense


def _digest(study: Study, chosen: Sequence[Outcome]) -> str:
    """Changes whenever the pictures would."""
    inputs: list[Any] = [_FORMAT, mimkit.__version__, study.seeds[0]]
    for outcome in chosen:
        folder = RunFolder(outcome.folder)
        files = (
            folder.recipe,
            folder.path / "encoder.safetensors",
            *sorted(folder.checkpoints.glob("*.json"))[-1:],  # which holds the tensors' checksum
        )
        found = [sha256(file) for file in files if file.is_file()]
        inputs.append([str(outcome.cell), outcome.ledger["dataset"]["test_images"], *found])
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _is_current(pictures: Path, digest: str, num_sheets: int) -> bool:
    try:
        held = json.loads((pictures / "manifest.json").read_text(encoding="utf-8"))
        digests = [sheet["digest"] for sheet in held]
        there = all((pictures / sheet["file"]).is_file() for sheet in held)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False
    return there and digests == [digest] * num_sheets
