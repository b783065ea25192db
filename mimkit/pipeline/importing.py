"""Another project's checkpoint as a run of mimkit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from torch import Tensor, nn

from mimkit.console import headed
from mimkit.data.intake.locate import registered
from mimkit.data.registered import IMAGENET_MEAN, IMAGENET_STD
from mimkit.errors import DataError
from mimkit.files import write_text
from mimkit.parts.base import Importer
from mimkit.recipe.build import build
from mimkit.recipe.registry import find
from mimkit.recipe.registry import load as load_entry
from mimkit.recipe.schema import load, resolved
from mimkit.report.folder import RunFolder
from mimkit.report.ownership import refuse_foreign
from mimkit.train import checkpoint
from mimkit.train.encoder_file import save_encoder
from mimkit.train.loop import Progress
from mimkit.train.optim import make_optimizer
from mimkit.train.step import Pretrainer


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
    reader = cast(type[Importer], load_entry(find("importers", importer)))()
    if not file.is_file():
        raise DataError(f"{file}: must be a checkpoint file, but there is none.")
    found = reader.read(file)
    # What is open in it is settled when it runs: reading a file needs neither data nor network.
    chosen = load(
        recipe or reader.recipe,
        preset=preset,
        fixed=found.settings,
        overrides=overrides,
        data_path=data_path,
    )
    dataset = registered(chosen.data.name)
    parts = build(
        chosen,
        mean=chosen.data.mean or (dataset.mean if dataset else IMAGENET_MEAN),
        std=chosen.data.std or (dataset.std if dataset else IMAGENET_STD),
    )
    notes = [*found.notes, *_fill(parts.encoder, found.encoder, "encoder", file)]
    notes += _fill(parts.head, found.head, "head", file)
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
    console.print(f"To go on, or to evaluate it: mimkit run {out}", soft_wrap=True)


def _refuse_held(folder: RunFolder) -> None:
    if folder.holds_work:
        raise DataError(f"{folder.path}: must not hold a run yet, but does. Choose another --out.")


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], name: str, file: Path) -> list[str]:
    """Loads what the file holds of one part; returns what it does not hold, in words.

    Raises: DataError if a tensor has no place in the part, or another shape.
    """
    if not tensors:
        return [f"the file holds no {name}, so it starts anew"]
    own = module.state_dict()
    for key, value in tensors.items():
        if key not in own or own[key].shape != value.shape:
            expected = f"of shape {tuple(own[key].shape)}" if key in own else "not there at all"
            raise DataError(
                f"{file}: its {name} must fit the recipe's, but {key} has shape "
                f"{tuple(value.shape)} and should be {expected}. Options that --set or the recipe "
                f"gives to [{name}] may contradict the file."
            )
    module.load_state_dict(dict(tensors), strict=False)
    parameters = dict(module.named_parameters())
    missing = [key for key in own if key not in tensors and key in parameters]
    return [f"{name}: {', '.join(missing)} not in the file, so new"] if missing else []
