"""Readers of checkpoints that no method owns."""

from pathlib import Path
from typing import Final

from mimkit.builtin.plain_vit import import_vit
from mimkit.parts.checkpoints import read_checkpoint
from mimkit.parts.importer import Imported, Importer

_PIXELS: Final = (
    "the file does not say how pixels were normalised: the data's mean and standard deviation are "
    "taken; else --set data.mean=[R, G, B] and data.std likewise (timm: model.pretrained_cfg)"
)


class TimmImporter(Importer):
    """Reads plain vision transformers under timm's names, for encoder ``vit``.

    Whatever saved it: timm's own files, DeiT, DINO, I-JEPA, or what ``mimkit export --format timm``
    writes. Read off the tensors are patches, widths, depth, class token, layer scale, the place of
    the last norm and the kind of positions. Not in them are the number of heads (64 channels each
    are taken, but 16 heads at the published widths 1152, 1280, 1408 and 1664) and how pixels were
    normalised. A classifier is left out; register tokens, gated MLPs and whatever else encoder
    ``vit`` has not are refused by name.

    Source: names of timm's ``VisionTransformer``.
    """

    recipe = "vit_in224"

    def read(self, file: Path) -> Imported:
        """Reads a checkpoint.

        Raises: DataError if the file is unreadable, of another layout, or not complete.
        """
        checkpoint = read_checkpoint(file)
        found = import_vit(checkpoint.tensors, file)
        notes = (*checkpoint.notes, *found.notes, _PIXELS)
        return Imported(found.settings, found.encoder, found.head, notes)
