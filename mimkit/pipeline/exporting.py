"""A run's encoder for use elsewhere."""

from pathlib import Path
from typing import Final

from rich.console import Console

from mimkit.console import headed
from mimkit.errors import DataError, PluginError, RecipeError
from mimkit.export.base import Exportable, Exporter, allowed, difference, exporter, size
from mimkit.files import make_folder, reading
from mimkit.ownership import kind_of, shown
from mimkit.parts.records import View
from mimkit.train.encoder_file import load_encoder, read_record

_TOLERANCE: Final = 1e-4
"""Of the largest number that an encoder answers: beyond it something is wrong, not rounded."""


def export_run(run: Path, format_: str, out: Path | None, console: Console) -> None:
    """Writes the encoder of a run in a form that other programs load.

    What was written is loaded and held against the source.

    Args:
        run: the run folder.
        format_: registered name of an exporter.
        out: the file, or for some formats the folder, neither of which may exist, nor the JSON file
            beside a file; None for the format's name in the run folder, where an earlier export is
            replaced.
        console: where to say how to load it.

    Raises: DataError if the folder holds no encoder, or a file is in the way; RecipeError if the
        encoder has no such form; PluginError if there is no such format, or what was written
        answers otherwise.
    """
    chosen = exporter(format_)
    path = out or run / f"{format_}{chosen.suffix}"
    if out is not None or kind_of(run) != "run":
        refuse_taken(path, chosen.suffix)
    source = load_exportable(run)
    refuse_impossible(source, format_, chosen)
    if not chosen.suffix:
        make_folder(path)
    try:
        lines = chosen.write(source, path)
    except RecipeError as error:
        raise RecipeError(_refusal(source, format_, error)) from error
    console.print(
        headed("wrote", f"{path}{verified(source, chosen, path)}. To load it:"), soft_wrap=True
    )
    for line in lines:
        console.print(f"  {line.replace('OUT', repr(str(path)))}", soft_wrap=True)


def load_exportable(run: Path, license_: str = "") -> Exportable:
    """Loads the encoder of a run, and what it must be shown.

    Raises: DataError if the folder holds no encoder; PluginError if its plugin is not installed.
    """
    encoder, about = load_encoder(run).requires_grad_(False), read_record(run)
    grid = about["grid"]
    view = View(
        "image",
        (grid["rows"] * grid["patch_size"], grid["cols"] * grid["patch_size"]),
        tuple(about["mean"]),
        tuple(about["std"]),
        about["interpolation"],
    )
    return Exportable(encoder, view, about["channels"], about, license_)


def refuse_impossible(source: Exportable, format_: str, chosen: Exporter) -> None:
    """Refuses a form that an encoder has not, with those that it has.

    Raises: RecipeError.
    """
    try:
        chosen.check(source)
    except RecipeError as error:
        raise RecipeError(_refusal(source, format_, error)) from error


def _refusal(source: Exportable, format_: str, error: RecipeError) -> str:
    others = [name for name in allowed(source) if name != format_]
    part = (source.about or {}).get("part", type(source.encoder).__name__)
    return (
        f"encoder '{part}' cannot be exported as {format_}: {str(error).rstrip('.')}. "
        f"Choose --format {' or '.join(others)}."
    )


def verified(source: Exportable, chosen: Exporter, path: Path) -> str:
    """Says how far what was written answers like the source.

    Raises: PluginError if that is more than rounding.
    """
    answer = chosen.reload(path)
    if answer is None:
        return ""
    largest = difference(source, answer)
    if not largest <= _TOLERANCE * max(1.0, size(source)):
        raise PluginError(
            f"{path}: must give what the run's encoder gives, but differs by up to {largest:.1e}. "
            "Do not use it; tell the authors of the encoder's plugin."
        )
    how = f"to {largest:.0e}" if largest else "to the last bit"
    return f" (answers as the run's encoder does, {how})"


def refuse_taken(path: Path, suffix: str) -> None:
    """Refuses to write over files: what is written, or that of the facts beside it.

    Raises: DataError.
    """
    if not suffix:
        with reading(path):
            held = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
            if held or (path.exists() and not path.is_dir()):
                what = f"holds {shown(held)}" if held else "is a file"
                raise DataError(
                    f"{path}: must be a folder that is new or empty, but {what}, which is left as "
                    "it is. Name another folder with --out."
                )
        return
    if path.suffix != suffix:
        raise DataError(
            f"{path}: must end in {suffix}, by which programs know what it is, and beside it goes "
            f"a JSON file of the same name. Name FILE{suffix} with --out."
        )
    for file in (path, path.with_suffix(".json")):
        with reading(file):
            if file.exists() or file.is_symlink():
                raise DataError(
                    f"{file}: exists already and is left as it is. Name another file with --out."
                )
