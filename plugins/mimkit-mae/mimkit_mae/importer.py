"""Checkpoints of MAE (arXiv 2111.06377) from its released code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from mimkit import (
    Geometry,
    Grid,
    Imported,
    Importer,
    Width,
    count_blocks,
    import_vit,
    mlp_ratio,
    read_checkpoint,
    require_fit,
    sincos_grid,
)
from mimkit_mae.decoder import MAEDecoder

_PREDICTION: Final = "pixels"
"""Name of the prediction, as in MAE's recipes."""
_NAMES: Final = {
    "decoder_embed.": "embed.",
    "decoder_blocks.": "blocks.",
    "decoder_norm.": "norm.",
    "decoder_pred.": f"predictors.{_PREDICTION}.",
}
_POSITIONS: Final = "decoder_pos_embed"
_FC1: Final = "blocks.0.mlp.fc1.weight"
_NUM_HEADS: Final = 16
"""Of the decoder, in all released models."""


class MAEImporter(Importer):
    """Reads MAE's checkpoints: pre-trained with or without the decoder, fine-tuned, linear probes.

    All sizes are read off the tensors, the grid off the fixed positions, which keep the order of
    the released code. With the decoder, pre-training can go on. Not in the tensors are the
    numbers of heads: the encoder's are 64 channels wide, but 16 at width 1280, and the decoder has
    16, as in all released models. Whole checkpoints keep the program's options, which say whether
    the pixels of each patch were normalised. Classifiers are left out.

    Source: names in facebookresearch/mae; there pixels are normalised by ImageNet's mean and
        deviation, whatever the images.
    """

    recipe = "mae_in224"

    def read(self, file: Path) -> Imported:
        """Reads a checkpoint; a decoder that `MAEDecoder` cannot be is left out, with a note.

        Raises: DataError if the file is unreadable, of another layout, or not complete.
        """
        checkpoint = read_checkpoint(file)
        encoder, decoder = _split(checkpoint.tensors)
        found = import_vit(encoder, file)
        settings: dict[str, Any] = {**found.settings}
        if "channels" not in settings["data"]:
            settings["data"] = {
                **settings["data"],
                "mean": IMAGENET_DEFAULT_MEAN,
                "std": IMAGENET_DEFAULT_STD,
            }
        notes = [*checkpoint.notes, *found.notes]
        head: Mapping[str, Tensor] = {}
        if decoder:
            read = _read_decoder(decoder, settings, file)
            if isinstance(read, str):
                notes.append(f"its decoder is left out: {read}")
            else:
                head = read.tensors
                settings["head"] = {"part": "mae_decoder", **read.options}
                notes.append(
                    "the file does not say the decoder's number of heads: "
                    f"{read.options['num_heads']} is taken; else --set head.num_heads=N"
                )
                normalised = checkpoint.args.get("norm_pix_loss")
                if isinstance(normalised, bool):
                    settings["targets"] = {_PREDICTION: {"normalize": normalised}}
        return Imported(settings, found.encoder, head, tuple(notes))


@dataclass(frozen=True)
class _Decoder:
    """What a file holds of `MAEDecoder`: tensors under its names, and its options."""

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]


def _split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sorts the tensors into encoder, under their names, and decoder, under ours."""
    encoder, decoder = dict(tensors), {}
    for name in tensors:
        known = next((old for old in (*_NAMES, _POSITIONS) if name.startswith(old)), None)
        if known is not None:
            decoder[name.replace(known, _NAMES.get(known, "positions"), 1)] = encoder.pop(name)
    if decoder and "mask_token" in encoder:
        decoder["mask_token"] = encoder.pop("mask_token")
    return encoder, decoder


def _read_decoder(
    tensors: dict[str, Tensor], settings: Mapping[str, Any], file: Path
) -> _Decoder | str:
    """Returns the decoder, or why `MAEDecoder` cannot compute what it does.

    Raises: DataError if a tensor lacks, has another shape, or does not belong there.
    """
    patch_size = settings["data"]["patch_size"]
    height, width = settings["data"]["image_size"]
    grid = Grid(height // patch_size, width // patch_size, patch_size)
    places = tensors.get("positions")
    num_prefix = int(settings["encoder"]["class_token"])
    if places is None or places.ndim != 3 or places.shape[1] <= num_prefix:
        return "it has no positions"
    fixed = sincos_grid(places[0, num_prefix:], patch_size)
    if fixed is None or fixed[0] != grid or places[0, :num_prefix].any():
        return "its positions are not the sine-cosine ones of the encoder's grid"
    embed_dim = places.shape[2]
    tensors = {**tensors, "positions": places[0, num_prefix:]}
    options = {
        "embed_dim": embed_dim,
        "depth": count_blocks(tensors),
        "num_heads": max(n for n in range(1, _NUM_HEADS + 1) if not embed_dim % n),
        "mlp_ratio": mlp_ratio(tensors.get(_FC1, places)),
        "order": fixed[1],
    }
    channels = settings["data"].get("channels", 3)
    outputs = {_PREDICTION: Width("vector", channels * patch_size**2)}
    geometry = Geometry(grid, embed_dim=settings["encoder"]["embed_dim"], outputs=outputs)
    require_fit(tensors, MAEDecoder, geometry, options, what="MAE's decoder", file=file)
    return _Decoder(tensors, options)
