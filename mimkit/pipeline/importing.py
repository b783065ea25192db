"""Another project's checkpoint as a run of mimkit."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console
from torch import Tensor, nn

from mimkit.console import headed
from mimkit.data.intake.locate import registered
from mimkit.data.pixels.form import RGB
from mimkit.data.registered import IMAGENET_MEAN, IMAGENET_STD
from mimkit.errors import DataError
from mimkit.files import write_text
from mimkit.folder import RunFolder
from mimkit.ownership import refuse_foreign
from mimkit.parts.channels import adapt_channels
from mimkit.parts.fitting import misfits
from mimkit.parts.importer import Imported, Importer
from mimkit.parts.state_dicts import listed
from mimkit.recipe.build import build
from mimkit.recipe.problems import written
from mimkit.recipe.registry import Entry, entries, find
from mimkit.recipe.registry import load as load_entry
from mimkit.recipe.schema import Recipe, load, resolved
from mimkit.recipe.sections import DataSection
from mimkit.train import checkpoint
from mimkit.train.encoder_file import save_encoder
from mimkit.train.optim import make_optimizer
from mimkit.train.progress import Progress
from mimkit.train.step import Pretrainer

_OF_FILES: Final = ("image_size", "patch_size", "channels")
"""What files tell of ``[data]``, which a recipe must not contradict."""


def import_run(
    importer: str,
    file: Path,
    out: Path,
    *,
    recipe: str | None,
    preset: str | None,
    overrides: Sequence[str],
    data_path: str | None,
    console: Console,
) -> None:
    """Makes a run folder whose first checkpoint holds the weights of ``file``.

    Args:
        importer: registered name of the reader.
        file: the checkpoint.
        out: the run folder, which must not hold a run yet.
        recipe: gives what the file does not say; None for the importer's own choice.
        preset: of that recipe.
        overrides: ``a.b=VALUE`` settings.
        data_path: replaces ``data.path``.
        console: where to talk.

    Raises: DataError if the file cannot be read, does not fit, or ``out`` holds a run.
    """
    refuse_foreign(out, "run")
    _refuse_held(RunFolder(out))
    entry = find("importers", importer)
    reader = cast(type[Importer], load_entry(entry))()
    if not file.is_file():
        raise DataError(f"{file}: must be a checkpoint file, but there is none.")
    found = _read(reader, entry, file)
    # What is open in it is settled when it runs: reading a file needs neither data nor network.
    chosen = _choose(
        found.settings,
        partial(
            load,
            recipe or reader.recipe,
            preset=preset,
            overrides=overrides,
            data_path=data_path,
        ),
    )
    mean, std = _statistics(chosen.data)
    parts = build(chosen, mean=mean, std=std)
    contradictions = _contradictions(found, chosen)
    tensors, adapted = adapt_channels(
        found.encoder, parts.encoder.state_dict(), chosen.data.channels
    )
    notes = [*found.notes, *adapted]
    notes += _fill(parts.encoder, tensors, "encoder", file, contradictions)
    head = found.head
    if adapted and misfits(head, parts.head.state_dict()):
        head = {}  # it predicts what the file's images had three of
    notes += _fill(parts.head, head, "head", file, contradictions)
    with RunFolder(out, writable=True, say=console.print) as folder:
        _refuse_held(folder)
        folder.clear()
        pretrainer = Pretrainer(parts)
        optimizer = make_optimizer(pretrainer, chosen.train)
        checkpoint.save(folder.checkpoints, 0, pretrainer, optimizer, Progress(0, 0.0, []).state())
        save_encoder(out, parts.encoder, chosen.encoder, parts.geometry, parts.views[0])
        # Written last: where it is, the run is complete.
        write_text(folder.recipe, resolved(chosen))
    for note in notes:
        console.print(f"note: {note}")
    console.print(headed("run", out), soft_wrap=True)
    console.print(f"To go on: mimkit run {out}", soft_wrap=True)
    console.print(f"To judge it as it is: mimkit evaluate {out}", soft_wrap=True)


def _choose(settings: Mapping[str, Any], choose: Callable[..., Recipe]) -> Recipe:
    """Loads the recipe; where its images have other channels, the file's mean is not theirs."""
    data = {k: v for k, v in settings.get("data", {}).items() if k not in ("mean", "std")}
    chosen = choose(fixed={**settings, "data": data})
    return choose(fixed=settings) if chosen.data.channels == RGB else chosen


def _statistics(data: DataSection) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Says what is known of mean and deviation before the data are opened.

    Of other images than RGB that is nothing: they are measured when they first are.
    """
    dataset = registered(data.name)
    mean, std = (dataset.mean, dataset.std) if dataset else (IMAGENET_MEAN, IMAGENET_STD)
    if data.channels != RGB:
        mean = std = (0.5,) * data.channels
    return data.mean or mean, data.std or std


def _refuse_held(folder: RunFolder) -> None:
    if folder.holds_work:
        raise DataError(f"{folder.path}: must not hold a run yet, but does. Choose another --out.")


def _read(reader: Importer, entry: Entry, file: Path) -> Imported:
    """Reads a checkpoint; where the importer refuses it, says which other one would not.

    Raises: DataError if the importer does.
    """
    try:
        return reader.read(file)
    except DataError as error:
        # Several may read a plain encoder: one that belongs to no method comes first.
        known = sorted(entries("importers"), key=lambda other: other.distribution != "mimkit")
        others = [other.name for other in known if _reads(other, entry, file)]
        if not others:
            raise
        names = " or ".join(f"'{name}'" for name in others)
        raise DataError(
            f"{str(error).rstrip('.')}. Importer {names} reads it: "
            f"mimkit import {others[0]} {file} --out RUN"
        ) from error


def _reads(other: Entry, entry: Entry, file: Path) -> bool:
    if other == entry:
        return False
    try:
        cast(type[Importer], load_entry(other))().read(file)
    except Exception:  # of another plugin, which nobody asked for: it may fail in any way
        return False
    return True


def _contradictions(found: Imported, recipe: Recipe) -> list[str]:
    """Says which keys of the recipe differ from what the file says, and how to mend each."""
    chosen: dict[str, Mapping[str, Any]] = {
        "data": {name: getattr(recipe.data, name) for name in _OF_FILES},
        "encoder": {"part": recipe.encoder.name, **recipe.encoder.options},
        "head": {"part": recipe.head.name, **recipe.head.options},
    }
    lines = []
    for table, options in chosen.items():
        for name, value in found.settings.get(table, {}).items():
            if name in options and (mine := _plain(options[name])) != (right := _plain(value)):
                key = f"{table}.{name}"
                right_set = "" if value is None else f", or --set {key}={written(right)}"
                lines.append(
                    f"{key} is {_worded(mine)}, but {_worded(right)} in the file: leave it out"
                    f"{right_set}."
                )
                if key == "data.image_size":
                    lines.append("To fine-tune at another size, give 'finetune' an image_size.")
    return lines


def _plain(value: object) -> object:
    """Writes a size as recipes do: one number for a square."""
    if isinstance(value, tuple | list):
        return value[0] if len(set(value)) == 1 and len(value) == 2 else list(value)
    return value


def _worded(value: object) -> str:
    return "not given" if value is None else written(value)


def _fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    name: str,
    file: Path,
    contradictions: Sequence[str],
) -> list[str]:
    """Loads what the file holds of one part; returns what it does not hold, in words.

    Raises: DataError if a tensor has no place in the part, another shape, or no finite numbers.
    """
    if not tensors:
        return [f"the file holds no {name}, so it starts anew"]
    own = module.state_dict()
    if wrong := misfits(tensors, own):
        why = contradictions or [
            f"Options that --set or the recipe gives to [{name}] may contradict the file."
        ]
        raise DataError(
            f"{file}: its {name} must fit the recipe's, but {listed(wrong)}. {' '.join(why)}"
        )
    module.load_state_dict(dict(tensors), strict=False)
    parameters = dict(module.named_parameters())
    missing = [key for key in own if key not in tensors and key in parameters]
    return [f"{name}: {', '.join(missing)} not in the file, so new"] if missing else []
