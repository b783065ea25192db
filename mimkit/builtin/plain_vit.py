"""Weights of a plain vision transformer, as timm names them, for encoder ``vit``."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor

from mimkit.builtin.encoders import ViT
from mimkit.builtin.positions import First, sincos_grid
from mimkit.errors import DataError
from mimkit.parts.fitting import count_blocks, mlp_ratio, require_fit, square_patches
from mimkit.parts.importer import Imported
from mimkit.parts.records import Geometry, Grid
from mimkit.parts.state_dicts import listed

_PROJECTION: Final = "patch_embed.proj.weight"
_NEEDED: Final = (_PROJECTION, "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
# A classifier or the like: nothing here uses it.
_HEADS: Final = ("head", "fc", "classifier", "neck", "projector", "projection_head")
# What other transformers of these names have, by how its names begin or what they contain.
_FOREIGN: Final = {
    "reg_token": "register tokens",
    "register_tokens": "register tokens",
    "dist_token": "a distillation token",
    "norm_pre.": "a norm before the first block",
    "attn_pool.": "pooling by attention",
    ".q_norm.": "norms of queries and keys",
    ".attn.norm.": "a norm inside the attention",
    ".mlp.norm.": "a norm inside the MLP",
    ".mlp.w12.": "gated MLPs",
    ".mlp.fc1_g.": "gated MLPs",
    "rel_pos": "relative positions",
    "relative_position": "relative positions",
    ".q_bias": "a bias of queries and values of its own",
    "patch_embed.backbone.": "a convolutional network before the blocks",
    "patch_embed.norm.": "a norm of the patches",
    "decoder": "a decoder",
}
_HEAD_WIDTH: Final = 64
# Widths at which the published models have heads of other widths.
_NUM_HEADS: Final = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
# Only a start value: the file's own factors replace it.
_LAYER_SCALE: Final = 1e-5


def import_vit(tensors: Mapping[str, Tensor], file: Path) -> Imported:
    """Reads the weights of a plain vision transformer, of any size that encoder ``vit`` can be.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224")
    >>> import_vit(model.state_dict(), Path("tiny.pth")).settings["encoder"]["depth"]
    12

    Read off the tensors are patches, widths, depth, class and mask token, layer scale, whether
    the last norm stands before or behind the pooling, and whether positions are learned or which
    fixed ones. The number of heads is not in them: heads are taken to be 64 channels wide, but 16
    at the widths 1152, 1280, 1408 and 1664. Nor are rows and columns of learned positions, which
    are taken to be as square as their number allows; with a class token, a square number of
    positions is that of the patches alone. A classifier is left out. Notes say so.

    Args:
        tensors: state dict, under timm's names.
        file: for messages.

    Raises: DataError if names are others, the model has what encoder ``vit`` has not, or a
        tensor lacks, has another shape, or is no finite floating-point number.
    Source: names of timm's ``VisionTransformer``, which are also those of DeiT, DINO, MAE and
        I-JEPA; numbers of heads of ViT-H, g and G (arXiv 2106.04560) and SoViT (2305.13035).
    """
    if not tensors.keys() >= set(_NEEDED):
        raise DataError(
            f"{file}: must be a plain vision transformer under timm's names, with {_PROJECTION} "
            f"and so on, but its {len(tensors)} tensors are called {listed(list(tensors))}. See "
            "which file it is: mimkit list importers"
        )
    left_out = [name for name in tensors if name.split(".")[0] in _HEADS]
    encoder = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    _refuse_foreign(encoder, file)
    options: dict[str, Any] = {}
    if "mask_token" in encoder:
        encoder["mask_token"] = encoder["mask_token"].reshape(1, 1, -1)
        options["mask_token"] = True
    if "fc_norm.weight" in encoder and "norm.weight" not in encoder:
        encoder |= {f"norm.{kind}": encoder.pop(f"fc_norm.{kind}") for kind in ("weight", "bias")}
        options |= {"pool": "mean", "final_norm": "pooled"}
    grid, table, positions, notes = _positions(encoder, file)
    encoder["pos_embed"] = table
    width = table.shape[-1]
    options |= {
        "embed_dim": width,
        "depth": count_blocks(encoder),
        "num_heads": _num_heads(width),
        "mlp_ratio": mlp_ratio(encoder["blocks.0.mlp.fc1.weight"]),
        "positions": positions,
        "class_token": "cls_token" in encoder,
        "layer_scale": _LAYER_SCALE if "blocks.0.ls1.gamma" in encoder else None,
    }
    channels = encoder[_PROJECTION].shape[1]
    what = f"a plain vision transformer of {options['depth']} blocks"
    require_fit(encoder, ViT, Geometry(grid, channels), options, what=what, file=file)
    notes.append(
        f"the file does not say the number of heads: {options['num_heads']} is taken, "
        f"{width // options['num_heads']} channels each; else --set encoder.num_heads=N"
    )
    if left_out:
        notes.append(f"left out, as nothing here uses it: {listed(left_out)}")
    settings = {
        "data": {
            "image_size": grid.image_size,
            "patch_size": grid.patch_size,
            **({} if channels == 3 else {"channels": channels}),
        },
        "encoder": {"part": "vit", **options},
    }
    return Imported(settings, encoder, notes=tuple(notes))


def _refuse_foreign(tensors: Mapping[str, Tensor], file: Path) -> None:
    found: dict[str, str] = {}
    for name in tensors:
        for mark, meaning in _FOREIGN.items():
            if name.startswith(mark) or (mark.startswith(".") and mark in name):
                found.setdefault(meaning, name)
    if found:
        words = [f"{meaning} ({name})" for meaning, name in found.items()]
        raise DataError(
            f"{file}: encoder 'vit' must be able to hold all of it, but it has {listed(words)}. "
            "See whether another importer reads it: mimkit list importers"
        )


def _positions(tensors: Mapping[str, Tensor], file: Path) -> tuple[Grid, Tensor, str, list[str]]:
    """Finds the grid, all positions (1, R + N, D), their kind as an option, and what to note.

    Raises: DataError if there are none.
    """
    patch_size = square_patches(tensors[_PROJECTION], file)
    table = tensors.get("pos_embed")
    width = tensors[_PROJECTION].shape[0]
    num_prefix = int("cls_token" in tensors)
    if table is None or table.ndim != 3 or table.shape[0] != 1 or table.shape[1] <= num_prefix:
        raise DataError(
            f"{file}: pos_embed must hold a position for each patch, (1, N, {width}), but "
            f"{'is not there' if table is None else f'has shape {tuple(table.shape)}'}. Encoder "
            "'vit' knows absolute positions alone."
        )
    notes: list[str] = []
    if num_prefix and _is_square(table.shape[1]):
        # Positions of the patches alone: that of the class token is zero.
        table = F.pad(table, (0, 0, 1, 0))
        notes.append("the class token has no position in the file: it gets one that is zero")
    fixed = sincos_grid(table[0, num_prefix:], patch_size)
    if fixed and not table[0, :num_prefix].any():
        grid, first = fixed
        return grid, table, _kind(first), notes
    num_patches = table.shape[1] - num_prefix
    rows = max(r for r in range(1, math.isqrt(num_patches) + 1) if not num_patches % r)
    grid = Grid(rows, num_patches // rows, patch_size)
    if grid.rows != grid.cols:
        notes.append(
            f"the file does not say rows and columns: {grid.rows} x {grid.cols} patches are taken; "
            "else --set data.image_size=[HEIGHT, WIDTH]"
        )
    return grid, table, "learned", notes


def _kind(first: First) -> str:
    return "sincos" if first == "rows" else "sincos_cols"


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _num_heads(width: int) -> int:
    known = _NUM_HEADS.get(width)
    if known:
        return known
    return max(heads for heads in range(1, max(1, width // _HEAD_WIDTH) + 1) if not width % heads)
