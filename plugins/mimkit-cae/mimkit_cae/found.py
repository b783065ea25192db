"""What follows from the tensors of a CAE checkpoint and from its program's options."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from mimkit import (
    Checkpoint,
    DataError,
    Grid,
    Width,
    count_blocks,
    mlp_ratio,
    sincos_grid,
    square_patches,
)
from mimkit_cae.layouts import FC1, KNOWN, Sorted

PREDICTION: Final = "tokens"
_PROJECTION: Final = "patch_embed.proj.weight"
_QUERY: Final = "regressor.blocks.0.cross_attn.q.weight"
_CROSS_FC1: Final = "regressor.blocks.0.mlp_cross.fc1.weight"
# Of the released models: small and base have 12 heads, large has 16.
_NUM_HEADS: Final = 12
_HEAD_WIDTH: Final = 64
_LARGE: Final = 1024
_IMAGE_SIZE: Final = 224


@dataclass(frozen=True)
class Found:
    """What a file holds, and which options follow from it.

    Args:
        tensors: sorted, under our names.
        checkpoint: with the options of the program that wrote the file.
        file: for messages.
    """

    tensors: Sorted
    checkpoint: Checkpoint
    file: Path

    @property
    def encoder(self) -> Mapping[str, Tensor]:
        """Tensors of the encoder."""
        return self.tensors.encoder

    @property
    def head(self) -> Mapping[str, Tensor]:
        """Tensors of the head; empty if the file holds the encoder alone."""
        return self.tensors.head

    @property
    def embed_dim(self) -> int:
        """D, the width of the tokens."""
        return self.encoder[_PROJECTION].shape[0]

    @property
    def head_dim(self) -> int:
        """The width of the head."""
        query = self.head.get(_QUERY)
        return self.embed_dim if query is None else query.shape[1]

    def grid(self) -> tuple[Grid, list[str]]:
        """Finds the rows and columns whose sine-cosine positions the file holds.

        Raises: DataError if there are none.
        """
        patch_size = square_patches(self.encoder[_PROJECTION], self.file)
        stored = self.encoder.get("pos_embed")
        if stored is None:
            side = _IMAGE_SIZE // patch_size
            return Grid(side, side, patch_size), [
                f"the file holds no positions, so images of {_IMAGE_SIZE} x {_IMAGE_SIZE} px are "
                "taken; else --set data.image_size=[HEIGHT, WIDTH]"
            ]
        if stored.ndim == 3 and stored.shape[1] > 1 and not stored[0, 0].any():
            found = sincos_grid(stored[0, 1:], patch_size)
            if found and found[1] == "rows":
                return found[0], []
        raise DataError(
            f"{self.file}: its positions, of shape {tuple(stored.shape)}, must be the sine-cosine "
            "ones of CAE, zero for the class token and rows before columns, but are not (MAE puts "
            f"columns first). {KNOWN}"
        )

    def encoder_options(self) -> dict[str, Any]:
        """Gives all options of `CAEViT`."""
        return {
            "embed_dim": self.embed_dim,
            "depth": count_blocks(self.encoder),
            "num_heads": _released_heads(self.embed_dim),
            "mlp_ratio": mlp_ratio(self.encoder[FC1]),
            "layer_scale": self._layer_scale("layer_scale_init_value")
            if "blocks.0.gamma_1" in self.encoder
            else None,
            **self._start(),
        }

    def head_options(self) -> dict[str, Any]:
        """Gives all options of `CAEHead` but the name of the latent."""
        return {
            "embed_dim": None if self.head_dim == self.embed_dim else self.head_dim,
            "depth_regressor": count_blocks(self.head, "regressor.blocks."),
            "depth_decoder": count_blocks(self.head, "decoder.blocks."),
            "num_heads": self._num_heads(),
            "mlp_ratio": mlp_ratio(self.head[_CROSS_FC1]),
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
        classes = self.head.get(f"predictors.{PREDICTION}.weight")
        return {} if classes is None else {PREDICTION: Width("class", classes.shape[0])}

    def obstacle(self) -> str | None:
        """Says why `CAEHead` cannot compute what the file's head does."""
        if not self.head:
            return None
        if _CROSS_FC1 not in self.head:
            return "it has no regressor"
        if not count_blocks(self.head, "decoder.blocks."):
            return "its decoder has no block but positions and a norm, which head 'cae' has not"
        query = self.head.get(_QUERY)
        if query is not None and query.shape[0] != query.shape[1]:
            return (
                f"its attention is {query.shape[0]} wide at {query.shape[1]} channels; head 'cae' "
                "needs heads that share the width evenly"
            )
        return None

    def open_questions(self, num_heads: int) -> list[str]:
        """Says what the tensors leave open."""
        notes = [
            f"the file does not say the encoder's number of heads: {num_heads} is taken, as in "
            "the released models of this width; else --set encoder.num_heads=N"
        ]
        if not self.checkpoint.normalisation():
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
        given = self.checkpoint.args.get("decoder_num_heads")
        if self.tensors.forwards_heads and isinstance(given, int):
            return given
        return _released_heads(self.head_dim)

    def _layer_scale(self, name: str) -> float:
        published = 1e-5 if self.embed_dim >= _LARGE else 0.1
        return self.checkpoint.number(name, published)

    def _start(self) -> dict[str, Any]:
        return {
            "drop_path": self.checkpoint.number("drop_path", 0.1),
            "init": "beit" if self.checkpoint.args.get("fix_init_weight") else "xavier",
        }


def _released_heads(width: int) -> int:
    twelve = width < _LARGE and width % _NUM_HEADS == 0
    return _NUM_HEADS if twelve else max(1, width // _HEAD_WIDTH)
