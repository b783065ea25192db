"""A run's encoder for use elsewhere."""

import json
from pathlib import Path
from typing import Literal

from rich.console import Console

from mimkit.console import headed
from mimkit.files import write_json
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
        out: the file; None for ``FORMAT.safetensors`` in the run folder.
        console: where to say how to load it.

    Raises: DataError if the folder holds no encoder; RecipeError if timm has no such model.
    """
    encoder = load_encoder(run)
    path = out or run / f"{format_}.safetensors"
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
