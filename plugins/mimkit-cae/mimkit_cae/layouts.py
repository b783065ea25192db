"""How tensors are called in the checkpoints of CAE's two public code releases."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from mimkit import DataError, require_axes

# Prefixes of the released names and of ours; only where a name begins with one.
_ENCODER: Final = "encoder."
_COPIES: Final = ("teacher.", "alignment_encoder.", "rd_pos_embed")
_HEAD: Final = {
    "mask_token": "regressor.mask_token",
    "encoder_to_decoder.": "projection.linear.",
    "encoder_to_decoder_norm.": "projection.norm.",
    "encoder_to_regresser.": "projection.linear.",
    "encoder_to_regresser_norm.": "projection.norm.",
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
_AXES: Final = {"cls_token": 3, "cross_attn.q.weight": 2, "predictors.tokens.weight": 2}
FC1: Final = "blocks.0.mlp.fc1.weight"
KNOWN: Final = (
    "Known are the pre-trained checkpoints of lxtGH/CAE and Atten4Vis/CAE, whole or the encoder "
    "alone."
)


@dataclass(frozen=True)
class Sorted:
    """The tensors of a checkpoint, under our names.

    Args:
        encoder: its tensors.
        head: likewise; empty if the file holds the encoder alone.
        forwards_heads: whether the program gives the head the number of heads it is told.
    """

    encoder: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    forwards_heads: bool


def sort(tensors: Mapping[str, Tensor], file: Path) -> Sorted:
    """Sorts the tensors of a checkpoint into encoder and head.

    Args:
        tensors: state dict of either release.
        file: for messages.

    Raises: DataError if the names are of no known layout.
    """
    tuned = [n for n in tensors if n.startswith("fc_norm.") or n.endswith("position_bias_table")]
    if tuned:
        raise DataError(
            f"{file}: must be a pre-trained checkpoint of CAE, but holds {tuned[0]}, as fine-tuned "
            f"ones and those of BEiT do. {KNOWN}"
        )
    encoder: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    rest: list[str] = []
    prefix = _ENCODER if any(name.startswith(_ENCODER) for name in tensors) else ""
    for name, tensor in tensors.items():
        known = next((old for old in _HEAD if name.startswith(old)), None)
        if known is not None:
            head[_HEAD[known] + name.removeprefix(known)] = tensor
        elif name.startswith(_COPIES):
            continue
        elif name.startswith(prefix):
            encoder[name.removeprefix(prefix)] = tensor
        else:
            rest.append(name)
    needed = ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.q_bias", FC1)
    problems = [f"lacks {name}" for name in needed if name not in encoder]
    problems += [f"has {name}" for name in rest]
    if problems:
        raise DataError(
            f"{file}: must be a checkpoint of CAE, but {', '.join(problems[:4])}. {KNOWN}"
        )
    require_axes({**encoder, **head}, _AXES, file)
    return Sorted(
        encoder=encoder,
        head=head,
        # Atten4Vis/CAE takes this option and never uses it.
        forwards_heads=any(name.startswith("pretext_neck.") for name in tensors),
    )
