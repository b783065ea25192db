"""Checkpoints of CAE (arXiv 2202.03026) from its two public code releases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import Tensor

from mimkit import (
    DataError,
    Geometry,
    Grid,
    Imported,
    Importer,
    RecipeError,
    Width,
    read_checkpoint,
)
from mimkit_cae.encoder import CAEViT, positions
from mimkit_cae.head import CAEHead

# Prefixes of the released names and of ours; only where a name begins with one.
_ENCODER: Final = "encoder."
_COPIES: Final = ("teacher.", "alignment_encoder.", "rd_pos_embed")
_HEAD: Final = {
    "mask_token": "regressor.mask_token",
    "pretext_neck.regressor_blocks.": "regressor.blocks.",
    "pretext_neck.norm.": "regressor.norm.",
    "pretext_neck.decoder_blocks.": "decoder.blocks.",
    "pretext_neck.norm2.": "decoder.norm.",
    "pretext_neck.head.": "predictors.tokens.",
    "regresser.regressor_blocks.": "regressor.blocks.",
    "regresser.norm.": "regressor.norm.",
    "decoder.decoder_blocks.": "decoder.blocks.",
    "decoder.norm.": "decoder.norm.",
    "decoder.head.": "predictors.tokens.",
}
_PROJECTIONS: Final = ("encoder_to_decoder", "encoder_to_regresser")
_PREDICTION: Final = "tokens"
_PUBLISHED: Final = Width("class", 8192)
_TOKENIZER: Final = (
    "its head predicts the codes of OpenAI's tokenizer, so targets.tokens.weights = 'openai'; else "
    "--set it"
)
_FC1: Final = "blocks.0.mlp.fc1.weight"
_CROSS_FC1: Final = "regressor.blocks.0.mlp_cross.fc1.weight"
_KNOWN: Final = (
    "Known are the pre-trained checkpoints of lxtGH/CAE and Atten4Vis/CAE, whole or the encoder "
    "alone."
)
# Of the released models: small and base have 12 heads, large has 16.
_NUM_HEADS: Final = 12
_HEAD_WIDTH: Final = 64
_LARGE: Final = 1024
_IMAGE_SIZE: Final = 224


class CAEImporter(Importer):
    """Reads pre-trained checkpoints of lxtGH/CAE and Atten4Vis/CAE, with or without the head.

    All sizes are read off the tensors, the grid off the fixed positions. The copy of the encoder
    that gives the alignment target is left out: here the encoder itself does. Not in the tensors
    are the numbers of heads and start values; whole checkpoints keep the program's options, which
    say both.

    Source: names in both releases' ``modeling_cae.py``; published files hold the encoder alone.
    """

    recipe = "cae_in224"

    def read(self, file: Path) -> Imported:
        """Reads a checkpoint; a head that `CAEHead` cannot be is left out, and a note says why.

        Raises: DataError if the file is unreadable, of another layout, or not complete.
        """
        checkpoint = read_checkpoint(file)
        found = _split(checkpoint.tensors, checkpoint.args, file)
        grid, notes = found.grid()
        options = found.encoder_options()
        _compare(_shapes(CAEViT, Geometry(grid), options, file), found.encoder, "encoder", file)
        settings: dict[str, Any] = {
            "data": {
                "image_size": grid.image_size,
                "patch_size": grid.patch_size,
                **found.normalisation(),
            },
            "encoder": {"part": "cae_vit", **options},
        }
        head: Mapping[str, Tensor] = {}
        obstacle = found.obstacle()
        if obstacle:
            notes.append(f"its head is left out: {obstacle}")
        elif found.head:
            head, head_options = found.loadable_head(), found.head_options()
            geometry = Geometry(grid, embed_dim=found.embed_dim, outputs=found.outputs())
            _compare(_shapes(CAEHead, geometry, head_options, file), head, "head", file)
            settings["head"] = {"part": "cae", **head_options}
            if geometry.outputs.get(_PREDICTION) == _PUBLISHED:
                # Codes of another tokenizer would mean something else.
                settings["targets"] = {_PREDICTION: {"weights": "openai"}}
                notes.append(_TOKENIZER)
        notes += found.open_questions(options["num_heads"])
        return Imported(settings, found.encoder, head, tuple(notes))


@dataclass(frozen=True)
class _Found:
    """What a file holds, and what follows from it.

    Args:
        encoder: its tensors, under our names.
        head: likewise; empty if the file holds the encoder alone.
        args: options of the program that wrote the file.
        has_projection: whether the head is of another width than the encoder.
        forwards_heads: whether that program gives the head the number of heads it is told.
        file: for messages.
    """

    encoder: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    args: Mapping[str, object]
    has_projection: bool
    forwards_heads: bool
    file: Path

    @property
    def embed_dim(self) -> int:
        return self.encoder["cls_token"].shape[-1]

    def grid(self) -> tuple[Grid, list[str]]:
        """Finds the rows and columns whose sine-cosine positions the file holds.

        Raises: DataError if there are none.
        """
        projection = self.encoder["patch_embed.proj.weight"]
        if projection.ndim != 4 or projection.shape[2] != projection.shape[3]:
            raise DataError(
                f"{self.file}: patches must be square, but patch_embed.proj.weight has shape "
                f"{tuple(projection.shape)}."
            )
        patch_size = projection.shape[2]
        stored = self.encoder.get("pos_embed")
        if stored is None:
            side = _IMAGE_SIZE // patch_size
            return Grid(side, side, patch_size), [
                f"the file holds no positions, so images of {_IMAGE_SIZE} x {_IMAGE_SIZE} px are "
                "taken; else --set data.image_size=[HEIGHT, WIDTH]"
            ]
        num_patches = stored.shape[1] - 1
        # The nearest to a square first: all but one are tried in vain.
        shapes = [(r, num_patches // r) for r in range(1, num_patches + 1) if not num_patches % r]
        for rows, cols in sorted(shapes, key=lambda shape: abs(shape[0] - shape[1])):
            grid = Grid(rows, cols, patch_size)
            if torch.allclose(stored.float(), positions(grid, self.embed_dim), atol=1e-2):
                return grid, []
        raise DataError(
            f"{self.file}: its {num_patches} positions must be the sine-cosine ones of CAE, rows "
            f"before columns, but are those of no grid (MAE puts columns first). {_KNOWN}"
        )

    def encoder_options(self) -> dict[str, Any]:
        """Gives all options of `CAEViT`."""
        width = self.embed_dim
        twelve = width < _LARGE and width % _NUM_HEADS == 0
        return {
            "embed_dim": width,
            "depth": _depth(self.encoder, "blocks."),
            "num_heads": _NUM_HEADS if twelve else max(1, width // _HEAD_WIDTH),
            "mlp_ratio": _mlp_ratio(self.encoder[_FC1]),
            "layer_scale": self._layer_scale("layer_scale_init_value")
            if "blocks.0.gamma_1" in self.encoder
            else None,
            **self._start(),
        }

    def head_options(self) -> dict[str, Any]:
        """Gives all options of `CAEHead` but the name of the latent."""
        return {
            "depth_regressor": _depth(self.head, "regressor.blocks."),
            "depth_decoder": _depth(self.head, "decoder.blocks."),
            "num_heads": self._num_heads(),
            "mlp_ratio": _mlp_ratio(self.head[_CROSS_FC1]),
            "layer_scale": self._layer_scale("decoder_layer_scale_init_value")
            if self._head_scales
            else None,
            **self._start(),
        }

    def loadable_head(self) -> dict[str, Tensor]:
        """Drops the regressor's factors where they are the constant 1."""
        if self._head_scales:
            return dict(self.head)
        return {name: tensor for name, tensor in self.head.items() if "gamma_" not in name}

    def outputs(self) -> dict[str, Width]:
        """Says what the head predicts; the latent needs no weights of its own."""
        classes = self.head.get(f"predictors.{_PREDICTION}.weight")
        return {} if classes is None else {_PREDICTION: Width("class", classes.shape[0])}

    def obstacle(self) -> str | None:
        """Says why `CAEHead` cannot compute what the file's head does."""
        if not self.head:
            return None
        if self.has_projection:
            return "it projects the encoder's vectors to another width, which head 'cae' does not"
        if _CROSS_FC1 not in self.head:
            return "it has no regressor"
        if not _depth(self.head, "decoder.blocks."):
            return "its decoder has no block but positions and a norm, which head 'cae' has not"
        query = self.head.get("regressor.blocks.0.cross_attn.q.weight")
        if query is not None and query.shape[0] != query.shape[1]:
            return (
                f"its attention is {query.shape[0]} wide at {query.shape[1]} channels; head 'cae' "
                "needs heads that share the width evenly"
            )
        return None

    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """Gives ``data.mean`` and ``data.std`` where the program's options say them."""
        imagenet = self.args.get("imagenet_default_mean_and_std")
        if imagenet is None:
            return {}
        if imagenet:
            return {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        return {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}

    def open_questions(self, num_heads: int) -> list[str]:
        """Says what the tensors leave open."""
        notes = [
            f"the file does not say the encoder's number of heads: {num_heads} is taken, as in "
            "the released models of this width; else --set encoder.num_heads=N"
        ]
        if not self.normalisation():
            notes.append(
                "the file does not say how pixels were normalised: the recipe's mean and standard "
                "deviation are taken; else --set data.mean=[R, G, B] and data.std likewise"
            )
        return notes

    @property
    def _head_scales(self) -> bool:
        """Whether the head's factors are trained; those of the regressor are always there."""
        return "decoder.blocks.0.gamma_1" in self.head

    def _num_heads(self) -> int:
        given = self.args.get("decoder_num_heads")
        if self.forwards_heads and isinstance(given, int):
            return given
        heads: int = self.encoder_options()["num_heads"]
        return heads

    def _layer_scale(self, name: str) -> float:
        published = 1e-5 if self.embed_dim >= _LARGE else 0.1
        return self._number(name, published)

    def _start(self) -> dict[str, Any]:
        return {
            "drop_path": self._number("drop_path", 0.1),
            "init": "beit" if self.args.get("fix_init_weight") else "xavier",
        }

    def _number(self, name: str, default: float) -> float:
        value = self.args.get(name)
        return float(value) if isinstance(value, int | float) else default


def _split(tensors: Mapping[str, Tensor], args: Mapping[str, object], file: Path) -> _Found:
    """Sorts the tensors into encoder and head, under our names.

    Raises: DataError if the names are of no known layout.
    """
    tuned = [n for n in tensors if n.startswith("fc_norm.") or n.endswith("position_bias_table")]
    if tuned:
        raise DataError(
            f"{file}: must be a pre-trained checkpoint of CAE, but holds {tuned[0]}, as fine-tuned "
            f"ones and those of BEiT do. {_KNOWN}"
        )
    encoder: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    rest: list[str] = []
    prefix = _ENCODER if any(name.startswith(_ENCODER) for name in tensors) else ""
    for name, tensor in tensors.items():
        known = next((old for old in _HEAD if name.startswith(old)), None)
        if known is not None:
            head[_HEAD[known] + name.removeprefix(known)] = tensor
        elif name.startswith((*_COPIES, *_PROJECTIONS)):
            continue
        elif name.startswith(prefix):
            encoder[name.removeprefix(prefix)] = tensor
        else:
            rest.append(name)
    needed = ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.q_bias", _FC1)
    problems = [f"lacks {name}" for name in needed if name not in encoder]
    problems += [f"has {name}" for name in rest]
    if problems:
        raise DataError(
            f"{file}: must be a checkpoint of CAE, but {', '.join(problems[:4])}. {_KNOWN}"
        )
    return _Found(
        encoder=encoder,
        head=head,
        args=args,
        has_projection=any(name.startswith(_PROJECTIONS) for name in tensors),
        # Atten4Vis/CAE takes this option and never uses it.
        forwards_heads=any(name.startswith("pretext_neck.") for name in tensors),
        file=file,
    )


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Counts blocks."""
    numbers = [re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in tensors]
    return max((1 + int(number[1]) for number in numbers if number), default=0)


def _mlp_ratio(fc1: Tensor) -> float:
    hidden, width = fc1.shape
    ratio = hidden / width
    # Rounded down, the product must be the width again.
    return ratio if int(ratio * width) == hidden else math.nextafter(ratio, math.inf)


def _shapes(
    part: type[CAEViT] | type[CAEHead], geometry: Geometry, options: Mapping[str, Any], file: Path
) -> dict[str, Tensor]:
    try:
        with torch.device("meta"):
            return part(geometry, **options).state_dict()
    except RecipeError as error:
        raise DataError(f"{file}: {error}") from error


def _compare(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], name: str, file: Path
) -> None:
    """Refuses files that lack a tensor, or hold one that CAE does not have, or of another shape.

    Raises: DataError.
    """
    missing = sorted(expected.keys() - tensors.keys() - {"pos_embed"})
    strange = sorted(tensors.keys() - expected.keys())
    if missing or strange:
        listed = [f"lacks {key}" for key in missing] + [f"has {key}" for key in strange]
        more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
        raise DataError(
            f"{file}: must hold all of CAE's {name} and nothing else, but "
            f"{', '.join(listed[:4])}{more}."
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise DataError(
                f"{file}: {key} must have shape {tuple(expected[key].shape)}, but has "
                f"{tuple(tensor.shape)}."
            )
