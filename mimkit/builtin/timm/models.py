"""Making a model of timm by its name."""

from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mimkit.errors import RecipeError, nearest
from mimkit.parts.records import Geometry


def model_options(name: str, geometry: Geometry, drop_path: float) -> dict[str, Any]:
    """Says what `timm.create_model` is called with, plain data; a ViT is told of the grid.

    Raises: RecipeError if timm has no such model, or it is neither a plain ViT nor a ResNet.
    """
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise RecipeError(
            f"encoder 'timm', model: must be the name of a model of timm, but is '{name}'."
            f'{nearest(name.partition(".")[0], known)} See: python -c "import timm; '
            "print(timm.list_models('vit*'))\""
        )
    options: dict[str, Any] = {
        "model_name": name,
        "in_chans": geometry.channels,
        "num_classes": 0,
        "drop_path_rate": drop_path,
    }
    kind = _kind(options)
    if kind is None:
        raise RecipeError(
            f"encoder 'timm', model: must be a plain vision transformer or a ResNet of timm, but "
            f"'{name}' is neither. Such are vit_small_patch16_224 and resnet50."
        )
    if kind is VisionTransformer:
        grid = geometry.grid
        options |= {"img_size": list(grid.image_size), "patch_size": grid.patch_size}
        options["dynamic_img_size"] = False
    return options


def make_model(options: dict[str, Any]) -> nn.Module:
    """Makes a model with random weights.

    Raises: RecipeError if it takes no such images.
    """
    try:
        model: nn.Module = timm.create_model(**options)
    except (TypeError, AssertionError, ValueError) as error:
        raise RecipeError(
            f"encoder 'timm', model: '{options['model_name']}' cannot be made for these images: "
            f"{error}. Choose another model, or another data.image_size and data.patch_size."
        ) from error
    return model


def _kind(options: dict[str, Any]) -> type[nn.Module] | None:
    """The class of a model, found without its weights; None for one that nothing here can run."""
    try:
        with torch.device("meta"):
            model = timm.create_model(**options)
    except Exception:  # one that reads its weights when it is made is none of the two
        return None
    # Subclasses have more tokens, and other embeddings look beyond a patch.
    if type(model) is VisionTransformer and isinstance(model.patch_embed, PatchEmbed):
        return VisionTransformer
    return ResNet if type(model) is ResNet else None
