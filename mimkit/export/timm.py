"""Encoders as models of timm: a state dict, or the folder that timm and transformers load."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mimkit.errors import RecipeError
from mimkit.export.base import Answer, Exportable, Exporter
from mimkit.files import write_json
from mimkit.parts.encoder import TimmModel
from mimkit.train.tensors import write_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_COLOURS = 3


class TimmExporter(Exporter):
    """A state dict of timm, and beside it the name and the options of its model.

    Source: names of timm's models.
    """

    suffix = ".safetensors"

    def check(self, source: Exportable) -> None:
        """Refuses encoders that are none of timm's models."""
        source.encoder.timm_model()

    def write(self, source: Exportable, out: Path) -> list[str]:
        """Writes the state dict and what it takes to make its model."""
        exported = source.encoder.timm_model()
        write_tensors(out, exported.tensors)
        about = {"model": exported.model, "options": dict(exported.options), **source.shown}
        write_json(out.with_suffix(".json"), about)
        module, _, name = exported.model.rpartition(":")
        make = (
            [f"from {module} import {name}", f'model = {name}(**about["options"])']
            if module
            else ["import timm", 'model = timm.create_model(about["model"], **about["options"])']
        )
        return [
            "import json, pathlib",
            "from safetensors.torch import load_file",
            'about = json.loads(pathlib.Path(OUT).with_suffix(".json").read_text())',
            *make,
            "model.load_state_dict(load_file(OUT))",
        ]

    def reload(self, out: Path) -> Answer:
        """Makes the model that the JSON file names."""
        about = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        return answer_of(build(TimmModel(about["model"], about["options"], load_file(out))))


class TransformersExporter(Exporter):
    """A folder that Hugging Face's transformers loads, and timm as well.

    transformers wraps the model of timm (``TimmWrapperModel``), so that both must be installed
    where it is loaded.

    Source: the folders of timm's own models on the Hugging Face Hub.
    """

    suffix = ""

    def check(self, source: Exportable) -> None:
        """Refuses encoders that timm does not make by a name."""
        named(source)

    def write(self, source: Exportable, out: Path) -> list[str]:
        """Writes configuration and weights."""
        write_folder(source, out)
        return [
            "from transformers import AutoImageProcessor, AutoModel",
            "processor = AutoImageProcessor.from_pretrained(OUT)",
            "model = AutoModel.from_pretrained(OUT)",
        ]

    def reload(self, out: Path) -> Answer:
        """Loads it as timm does: transformers runs the same model."""
        return answer_of(load_folder(out))


def named(source: Exportable) -> TimmModel:
    """Describes the model of timm that a name stands for.

    Raises: RecipeError if there is none.
    """
    exported = source.encoder.timm_model()
    if exported.model not in timm.list_models():
        raise RecipeError(
            f"{type(source.encoder).__name__} is {exported.model}, which is none of the names of "
            "timm.create_model."
        )
    return exported


def write_folder(source: Exportable, out: Path) -> None:
    """Writes what ``timm.create_model("local-dir:FOLDER")`` and the Hub read: two files.

    Raises: RecipeError if timm makes no such model by a name.
    """
    exported = named(source)
    model = build(exported)
    held = model.pretrained_cfg
    options = dict(exported.options)
    # Not in model_args: transformers makes every model without a classifier, and says so itself.
    num_classes = options.pop("num_classes", 0)
    # With the name of the first convolution timm may adapt it to another number of channels, which
    # it does from three alone: earlier versions draw new weights from any other number.
    first = {"first_conv": held.get("first_conv")} if source.channels == _COLOURS else {}
    pretrained = {
        "tag": "mimkit",
        "custom_load": False,
        "input_size": [source.channels, *source.view.image_size],
        "fixed_input_size": "img_size" in options,
        "interpolation": source.view.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(source.view.mean),
        "std": list(source.view.std),
        "num_classes": num_classes,
        "pool_size": None,
        "classifier": held.get("classifier"),
        **first,
        **({"license": source.license} if source.license else {}),
    }
    config = {
        "architecture": exported.model,
        "num_classes": num_classes,
        "num_features": source.encoder.embed_dim,
        "global_pool": options.get("global_pool", "avg"),
        "model_args": options,
        "pretrained_cfg": pretrained,
    }
    write_json(out / CONFIG, config)
    write_tensors(out / WEIGHTS, exported.tensors)


def load_folder(folder: Path) -> nn.Module:
    """Loads what `write_folder` wrote, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def build(exported: TimmModel) -> Any:
    """Makes the model, with its weights, in evaluation mode."""
    module, _, name = exported.model.rpartition(":")
    with torch.random.fork_rng(devices=[]):
        if module:
            model = getattr(importlib.import_module(module), name)(**exported.options)
        else:
            model = timm.create_model(exported.model, **exported.options)
    model.load_state_dict(dict(exported.tensors), strict=True)
    return model.eval()


def answer_of(model: Any) -> Answer:
    """Says what a model of timm answers: its tokens, or the cells of its last map."""

    def answer(image: Tensor) -> dict[str, Tensor]:
        tokens = model.forward_features(image)
        if tokens.ndim == 4:  # (B, D, rows, cols)
            return {"patches": tokens.flatten(2).mT}
        num_prefix = getattr(model, "num_prefix_tokens", 0)
        found = {"patches": tokens[:, num_prefix:]}
        return {**found, "prefix": tokens[:, :num_prefix]} if num_prefix else found

    return answer
