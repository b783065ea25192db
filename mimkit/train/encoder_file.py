"""The encoder on its own: what people keep of a run, and how they load it again."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mimkit.data.pixels.raster import Scale
from mimkit.errors import DataError
from mimkit.files import write_json
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Geometry, Grid, View
from mimkit.recipe.registry import find, load
from mimkit.recipe.tables import PartTable
from mimkit.train.tensors import write_tensors


def save_encoder(
    folder: Path,
    encoder: Encoder,
    table: PartTable,
    geometry: Geometry,
    view: View,
    *,
    scale: Scale | None = None,
) -> None:
    """Writes ``encoder.safetensors`` and ``encoder.json`` into a run folder.

    Args:
        folder: of the run.
        encoder: as it was trained.
        table: of the recipe, which names it.
        geometry: grid and channels.
        view: how its images are normalised.
        scale: the stored values that became 0 and 1 before that; None: 0 and 255.
    """
    write_tensors(folder / "encoder.safetensors", encoder.state_dict())
    grid = geometry.grid
    write_json(
        folder / "encoder.json",
        {
            "part": table.name,
            "distribution": table.distribution,
            "version": table.version,
            "options": table.options,
            "grid": {"rows": grid.rows, "cols": grid.cols, "patch_size": grid.patch_size},
            "channels": geometry.channels,
            "mean": view.mean,
            "std": view.std,
            **({} if scale is None else {"range": scale}),
            "interpolation": view.interpolation,
        },
    )


def load_encoder(run: str | Path) -> Encoder:
    """Loads the encoder of a run folder, in evaluation mode, on the CPU.

    ``load_encoder(run).features(image)`` gives its tokens; ``.backbone()`` a network to fine-tune.

    Raises: DataError if the folder holds no encoder; PluginError if its plugin is not installed.
    """
    folder = Path(run)
    record = read_record(folder)
    try:
        tensors = load_file(folder / "encoder.safetensors")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unfinished(error.filename) from error
    part = load(find("encoders", f"{record['distribution']}:{record['part'].split(':')[-1]}"))
    geometry = Geometry(Grid(**record["grid"]), record["channels"])
    with torch.random.fork_rng(devices=[]):
        encoder: Encoder = part(geometry, **record["options"])  # type: ignore[operator]
    encoder.load_state_dict(tensors)
    return encoder.eval()


def read_record(folder: Path) -> dict[str, Any]:
    """Reads what ``encoder.json`` says of the encoder of a run: its part, options and image.

    Raises: DataError if the folder holds none.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unfinished(error.filename) from error
    return record


def _unfinished(file: str) -> DataError:
    return DataError(
        f"{file}: not found, so this is not the folder of a finished run. "
        "See what there is: ls runs/*/*"
    )
