"""A run's encoder for use elsewhere."""

import json
from pathlib import Path
from typing import Literal

from rich.console import Console

from mimkit.console import headed
from mimkit.errors import DataError
from mimkit.files import reading, write_json
from mimkit.ownership import kind_of
from mimkit.train.encoder_file import load_encoder
from mimkit.train.tensors import write_tensors


def export_run(
    run: Path, format_: Literal["timm", "safetensors"], out: Path | None, console: Console
) -> None:
    """Writes the encoder of a run as one safetensors file, and beside it a JSON file about it.

    Args:
        run: the run folder.
        format_: "timm": a state dict that a model of timm loads with ``strict=True``;
            "safetensors": mimkit's own names.
        out: the file, which must not exist, nor the JSON file beside it; None for
            ``FORMAT.safetensors`` in the run folder, where an earlier export is replaced.
        console: where to say how to load it.

    Raises: DataError if the folder holds no encoder, or a file is in the way; RecipeError if timm
        has no such model.
    """
    path = out or run / f"{format_}.safetensors"
    if out is not None or kind_of(run) != "run":
        _refuse_taken(path)
    encoder = load_encoder(run)
    about = json.loads((run / "encoder.json").read_text(encoding="utf-8"))
    lines = ["from safetensors.torch import load_file"]
    if format_ == "timm":
        exported = encoder.timm_model()
        module, _, name = exported.model.partition(":")
        input_ = {key: about[key] for key in ("mean", "std", "interpolation")}
        tensors, about = (
            dict(exported.tensors),
            {
                "model": exported.model,
                "options": dict(exported.options),
                **input_,
            },
        )
        lines += [
            "import json, pathlib",
            f"from {module} import {name}",
            f'about = json.loads(pathlib.Path("{path.with_suffix(".json")}").read_text())',
            f'model = {name}(**about["options"])',
            f'model.load_state_dict(load_file("{path}"))',
        ]
    else:
        tensors = encoder.state_dict()
        lines.append(f'tensors = load_file("{path}")')
    write_tensors(path, tensors)
    write_json(path.with_suffix(".json"), about)
    console.print(headed("wrote", f"{path}. To load it:"), soft_wrap=True)
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)


def _refuse_taken(path: Path) -> None:
    """Refuses to write over files: the tensors', or that of the facts beside it."""
    if path.suffix == ".json":
        raise DataError(
            f"{path}: must not end in .json, since the facts about the tensors go into a JSON file "
            "of the same name. Name FILE.safetensors with --out."
        )
    for file in (path, path.with_suffix(".json")):
        with reading(file):
            if file.exists() or file.is_symlink():
                raise DataError(
                    f"{file}: exists already and is left as it is. Name another file with --out."
                )
