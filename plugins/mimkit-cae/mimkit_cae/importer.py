"""Checkpoints of CAE (arXiv 2202.03026) from its two public code releases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from mimkit import Geometry, Imported, Importer, Width, read_checkpoint, require_fit
from mimkit_cae.encoder import CAEViT
from mimkit_cae.found import PREDICTION, Found
from mimkit_cae.head import CAEHead
from mimkit_cae.layouts import sort

_PUBLISHED: Final = Width("class", 8192)
_TOKENIZER: Final = (
    "its head predicts the codes of OpenAI's tokenizer, so targets.tokens.weights = 'openai'; else "
    "--set it"
)


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
        found = Found(sort(checkpoint.tensors, file), checkpoint, file)
        grid, notes = found.grid()
        options = found.encoder_options()
        channels = found.encoder["patch_embed.proj.weight"].shape[1]
        require_fit(
            found.encoder,
            CAEViT,
            Geometry(grid, channels),
            options,
            what="CAE's encoder",
            file=file,
            optional=("pos_embed",),
        )
        settings: dict[str, Any] = {
            "data": {
                "image_size": grid.image_size,
                "patch_size": grid.patch_size,
                **({} if channels == 3 else {"channels": channels}),
                **checkpoint.normalisation(),
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
            require_fit(head, CAEHead, geometry, head_options, what="CAE's head", file=file)
            settings["head"] = {"part": "cae", **head_options}
            if geometry.outputs.get(PREDICTION) == _PUBLISHED:
                # Codes of another tokenizer would mean something else.
                settings["targets"] = {PREDICTION: {"weights": "openai"}}
                notes.append(_TOKENIZER)
        notes += found.open_questions(options["num_heads"])
        return Imported(settings, found.encoder, head, (*checkpoint.notes, *notes))
