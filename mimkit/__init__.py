"""mimkit: masked image modeling from exchangeable parts, compared honestly.

What a plugin author needs is importable from here; see ``docs/writing-a-plugin.md`` and
``docs/contract.md``. Names are loaded on first use, so that ``import mimkit`` costs nothing and
``mimkit --help`` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "mimkit.api": ("Features", "compare", "load_encoder", "run"),
    "mimkit.builtin.positions": ("sincos",),
    "mimkit.errors": (
        "BoundaryError",
        "DataError",
        "MimkitError",
        "PluginError",
        "RecipeError",
        "TrainingError",
    ),
    "mimkit.evaluate.base": ("Evaluator", "Result", "Subject", "Work"),
    "mimkit.parts.attention": ("patch_attention",),
    "mimkit.parts.base": (
        "Backbone",
        "Encoder",
        "Head",
        "Images",
        "Importer",
        "Loss",
        "Masker",
        "Module",
        "Part",
        "Target",
    ),
    "mimkit.parts.bounds": (
        "AnyCount",
        "Count",
        "Depth",
        "Fraction",
        "Multiple",
        "NonNegative",
        "Positive",
        "Rate",
        "Ratio",
        "Size",
    ),
    "mimkit.parts.checkpoints": ("Checkpoint", "read_checkpoint"),
    "mimkit.parts.depth": ("set_drop_path",),
    "mimkit.parts.flops": ("count_flops",),
    "mimkit.parts.frozen": ("freeze",),
    "mimkit.parts.patches": ("paste", "patchify", "scatter", "take", "unpatchify"),
    "mimkit.parts.records": (
        "Batch",
        "Geometry",
        "Grid",
        "Imported",
        "Mask",
        "Picture",
        "Preparation",
        "StepOutput",
        "Term",
        "TimmModel",
        "Tokens",
        "View",
        "Width",
    ),
    "mimkit.train.resumable": ("Resumable",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AnyCount",
    "Backbone",
    "Batch",
    "BoundaryError",
    "Checkpoint",
    "Count",
    "DataError",
    "Depth",
    "Encoder",
    "Evaluator",
    "Features",
    "Fraction",
    "Geometry",
    "Grid",
    "Head",
    "Images",
    "Imported",
    "Importer",
    "Loss",
    "Mask",
    "Masker",
    "MimkitError",
    "Module",
    "Multiple",
    "NonNegative",
    "Part",
    "Picture",
    "PluginError",
    "Positive",
    "Preparation",
    "Rate",
    "Ratio",
    "RecipeError",
    "Result",
    "Resumable",
    "Size",
    "StepOutput",
    "Subject",
    "Target",
    "Term",
    "TimmModel",
    "Tokens",
    "TrainingError",
    "View",
    "Width",
    "Work",
    "compare",
    "count_flops",
    "freeze",
    "load_encoder",
    "paste",
    "patch_attention",
    "patchify",
    "read_checkpoint",
    "run",
    "scatter",
    "set_drop_path",
    "sincos",
    "take",
    "unpatchify",
]

if TYPE_CHECKING:
    from mimkit.api import Features, compare, load_encoder, run
    from mimkit.builtin.positions import sincos
    from mimkit.errors import (
        BoundaryError,
        DataError,
        MimkitError,
        PluginError,
        RecipeError,
        TrainingError,
    )
    from mimkit.evaluate.base import Evaluator, Result, Subject, Work
    from mimkit.parts.attention import patch_attention
    from mimkit.parts.base import (
        Backbone,
        Encoder,
        Head,
        Images,
        Importer,
        Loss,
        Masker,
        Module,
        Part,
        Target,
    )
    from mimkit.parts.bounds import (
        AnyCount,
        Count,
        Depth,
        Fraction,
        Multiple,
        NonNegative,
        Positive,
        Rate,
        Ratio,
        Size,
    )
    from mimkit.parts.checkpoints import Checkpoint, read_checkpoint
    from mimkit.parts.depth import set_drop_path
    from mimkit.parts.flops import count_flops
    from mimkit.parts.frozen import freeze
    from mimkit.parts.patches import paste, patchify, scatter, take, unpatchify
    from mimkit.parts.records import (
        Batch,
        Geometry,
        Grid,
        Imported,
        Mask,
        Picture,
        Preparation,
        StepOutput,
        Term,
        TimmModel,
        Tokens,
        View,
        Width,
    )
    from mimkit.train.resumable import Resumable


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'mimkit' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)
