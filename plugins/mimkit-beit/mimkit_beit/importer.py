"""Checkpoints of BEiT (arXiv 2106.08254) from other projects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from mimkit import (
    Checkpoint,
    DataError,
    Geometry,
    Grid,
    Imported,
    Importer,
    count_blocks,
    mlp_ratio,
    read_checkpoint,
    require_fit,
    square_patches,
)
from mimkit_beit.encoder import BEiTViT
from mimkit_beit.layouts import num_cols, official, without_index
from mimkit_beit.positions import NUM_CLS_ROWS

_SHARED_TABLE: Final = "rel_pos_bias.relative_position_bias_table"
_FC1: Final = "blocks.0.mlp.fc1.weight"
_BLOCK_TABLE: Final = "blocks.0.attn.relative_position_bias_table"
# Name of the prediction, as in BEiT's recipes.
_PREDICTION: Final = "tokens"
_HEAD: Final = {
    f"lm_head.{kind}": f"predictors.{_PREDICTION}.{kind}" for kind in ("weight", "bias")
}
_HEAD_WIDTH: Final = 64
_PUBLISHED_CODES: Final = 8192
_TOKENIZER: Final = (
    "its head predicts the codes of one tokenizer, for 8192 codes OpenAI's: with another "
    "targets.tokens.weights they mean something else"
)


class BEiTImporter(Importer):
    """Reads pre-trained and fine-tuned checkpoints of microsoft/unilm, timm and Hugging Face.

    All options of the encoder are read off the tensors, at any size. Not in them are the number
    of heads where positions are absolute, and how pixels were normalised; a released training
    program keeps the latter in its checkpoint. Fine-tuned weights get a new mask token.

    Source: key layouts of microsoft/unilm (beit), timm's ``beit.py``, transformers 4 and 5.
    """

    recipe = "beit_in224"

    def read(self, file: Path) -> Imported:
        """Reads a checkpoint; fine-tuned ones have a classifier and no head.

        Raises: DataError if the file is unreadable, of another layout, or not complete.
        """
        checkpoint = read_checkpoint(file)
        found = _Found(official(checkpoint.tensors, file), checkpoint, file)
        grid, options = found.grid(), found.options()
        tensors = without_index(found.tensors)
        head = {new: tensors.pop(old) for old, new in _HEAD.items() if old in tensors}
        channels = tensors["patch_embed.proj.weight"].shape[1]
        geometry = Geometry(grid, channels)
        what = f"a BEiT of {options['depth']} blocks"
        optional = ("mask_token",)  # fine-tuned weights get a new one
        require_fit(
            tensors,
            BEiTViT,
            geometry,
            options,
            what=what,
            file=file,
            optional=optional,
        )
        settings: dict[str, Any] = {
            "data": {
                "image_size": grid.image_size,
                "patch_size": grid.patch_size,
                **({} if channels == 3 else {"channels": channels}),
                **checkpoint.normalisation(),
            },
            "encoder": {"part": "beit_vit", **options},
        }
        notes = (*checkpoint.notes, *found.notes(options))
        if head:
            num_codes = len(head[f"predictors.{_PREDICTION}.weight"])
            settings["targets"] = {
                _PREDICTION: {"weights": "openai"}
                if num_codes == _PUBLISHED_CODES
                else {"codebook_size": num_codes}
            }
            notes = (*notes, _TOKENIZER)
        return Imported(settings, tensors, head, notes)


@dataclass(frozen=True)
class _Found:
    """Tensors by their official names, and what follows from them."""

    tensors: Mapping[str, Tensor]
    checkpoint: Checkpoint
    file: Path

    @property
    def table(self) -> Tensor | None:
        """Of relative positions; the first block's if every block has one."""
        shared = self.tensors.get(_SHARED_TABLE)
        return self.tensors.get(_BLOCK_TABLE) if shared is None else shared

    def grid(self) -> Grid:
        """Works the grid out of the positions; squares need no index.

        Raises: DataError if there are no positions, two kinds, or the grid is not determined.
        """
        places, table = self.tensors.get("pos_embed"), self.table
        if (places is None) == (table is None):
            raise DataError(
                f"{self.file}: must have absolute or relative positions, but has "
                f"{'neither' if places is None else 'both'}. Known BEiT checkpoints have one kind."
            )
        patch_size = square_patches(self.tensors["patch_embed.proj.weight"], self.file)
        if places is not None:
            num_patches = places.shape[1] - 1
            side = math.isqrt(num_patches)
            fits, sizes = side * side == num_patches, f"{num_patches} patches"
            rows = cols = side
        else:
            assert table is not None
            num_offsets = table.shape[0] - NUM_CLS_ROWS
            known = num_cols(self.tensors)
            cols = (math.isqrt(max(num_offsets, 0)) + 1) // 2 if known is None else known
            rows = (num_offsets // (2 * cols - 1) + 1) // 2 if cols else 0
            fits = rows > 0 and (2 * rows - 1) * (2 * cols - 1) == num_offsets
            sizes = f"{table.shape[0]} relative positions"
        if not fits:
            raise DataError(
                f"{self.file}: the patches must form a square unless the file holds the index of "
                f"relative positions, but {sizes} are no square's."
            )
        return Grid(rows, cols, patch_size)

    def options(self) -> dict[str, Any]:
        """Gives all options of `BEiTViT`."""
        tensors = self.tensors
        embed_dim = tensors["cls_token"].shape[-1]
        table = self.table
        head = tensors.get("head.weight")
        positions = "relative" if _SHARED_TABLE in tensors else "relative_per_block"
        return {
            "embed_dim": embed_dim,
            "depth": count_blocks(tensors),
            "num_heads": max(1, embed_dim // _HEAD_WIDTH) if table is None else table.shape[1],
            "mlp_ratio": mlp_ratio(tensors[_FC1]) if _FC1 in tensors else 4.0,
            "positions": "absolute" if table is None else positions,
            "layer_scale": self.checkpoint.number("layer_scale_init_value", 0.1)
            if "blocks.0.gamma_1" in tensors
            else None,
            "drop_path": self.checkpoint.number("drop_path", 0.1),
            "mask_token": True,
            "final_norm": "tokens" if "norm.weight" in tensors else "pooled",
            "num_classes": 0 if head is None else head.shape[0],
        }

    def notes(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Says what the tensors leave open."""
        notes = []
        if options["positions"] == "absolute":
            notes.append(
                f"the file does not say the number of heads: {options['num_heads']} is taken, "
                f"{_HEAD_WIDTH} channels each, as in all released models; else --set "
                "encoder.num_heads=N"
            )
        if not self.checkpoint.normalisation():
            notes.append(
                "the file does not say how pixels were normalised: those of microsoft/unilm, also "
                "at Hugging Face and in timm, need data.mean = data.std = [0.5, 0.5, 0.5] if they "
                "saw ImageNet-22k"
            )
        if options["num_classes"]:
            notes.append(
                f"fine-tuned: its classifier of {options['num_classes']} classes is kept for "
                "export only, nothing here trains or uses it"
            )
        if options["final_norm"] == "pooled":
            notes.append(
                "fine-tuned: its norm stands behind the pooling, so tokens are not normalised; "
                "fine-tuning starts from that norm"
            )
        return tuple(notes)
