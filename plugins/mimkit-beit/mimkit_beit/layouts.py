"""How tensors are called in BEiT checkpoints of several projects."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from mimkit import DataError, require_axes

_KNOWN: Final = (
    "Known are the checkpoints of microsoft/unilm (pre-trained and fine-tuned), timm's Beit, and "
    "Hugging Face's BeitForMaskedImageModeling and BeitForImageClassification."
)

# Names of Hugging Face as pattern and replacement, tried in this order. Where a name has two
# forms, the first is that of its files and of transformers 4, the second of transformers 5.
_FROM_HUGGING_FACE: Final = (
    (r"^beit\.", ""),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.(attention\.attention\.)?relative_position_bias\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^classifier\.", "head."),
)
_PARTS: Final = ("query", "key", "value")
_INDEX: Final = "relative_position_index"
_AXES: Final = {
    "cls_token": 3,
    "pos_embed": 3,
    "head.weight": 2,
    "relative_position_bias_table": 2,
    _INDEX: 2,
}


def official(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Returns the tensors under the names of microsoft/unilm, which are also timm's.

    Args:
        tensors: state dict of any known layout.
        file: for messages.

    Raises: DataError if the names are of no known layout.
    """
    if any(name.startswith("beit.") for name in tensors):
        tensors = _from_hugging_face(tensors, file)
    if not {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= tensors.keys():
        raise DataError(
            f"{file}: must be a checkpoint of BEiT, but its {len(tensors)} tensors are called "
            f"{', '.join(list(tensors)[:4])} and so on. {_KNOWN}"
        )
    require_axes(tensors, _AXES, file)
    return dict(tensors)


def without_index(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors without those that follow from the grid."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_INDEX)}


def num_cols(tensors: Mapping[str, Tensor]) -> int | None:
    """Reads the columns of the grid off an index of relative positions, if there is one.

    From the first patch to the next ones of its row the index falls by 1 each; from the last of
    the row to the first of the next row it falls by more.
    """
    index = next((tensor for name, tensor in tensors.items() if name.endswith(_INDEX)), None)
    if index is None or len(index) < 2:
        return None
    first = index[1, 1:]
    return int((first == first[0] - torch.arange(len(first))).sum())


def _from_hugging_face(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in _FROM_HUGGING_FACE:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise DataError(f"{file}: must hold one {new}, but holds two; {name} is one. {_KNOWN}")
        renamed[new] = tensor
    # In one projection: first all queries, then all keys, then all values.
    for name in [name for name in renamed if name.endswith(".attn.query.weight")]:
        attention = name.removesuffix("query.weight")
        thirds = [renamed.pop(f"{attention}{part}.weight", None) for part in _PARTS]
        whole = [third for third in thirds if third is not None]
        if len(whole) == len(_PARTS):
            renamed[f"{attention}qkv.weight"] = torch.cat(whole)
        for part in ("query", "value"):
            bias = renamed.pop(f"{attention}{part}.bias", None)
            if bias is not None:
                renamed[f"{attention}{part[0]}_bias"] = bias
    return renamed
