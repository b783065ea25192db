"""mimkit: masked image modeling from exchangeable parts, compared honestly.

What a plugin author needs is importable from here; see ``docs/writing-a-plugin.md`` and
``docs/contract.md``. Names are loaded on first use, so that ``import mimkit`` costs nothing and
``mimkit --help`` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "mimkit.api": ("Features", "compare", "evaluate", "load_encoder", "run"),
    "mimkit.builtin.dense": ("DenseTransformer",),
    "mimkit.builtin.plain_vit": ("import_vit",),
    "mimkit.builtin.positions": ("sincos", "sincos_grid"),
    "mimkit.errors": (
        "BoundaryError",
        "DataError",
        "MimkitError",
        "PluginError",
        "RecipeError",
        "TrainingError",
    ),
    "mimkit.evaluate.base": ("Evaluator", "Result", "Subject", "Work"),
    "mimkit.evaluate.shown": ("Shown", "painted"),
    "mimkit.export.base": ("Exportable", "Exporter"),
    "mimkit.launch.base": ("Ended", "Launcher", "Needs", "Task"),
    "mimkit.parts.attention": ("patch_attention",),
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
    "mimkit.parts.checkpoints": ("read_checkpoint",),
    "mimkit.parts.dense": ("DenseBackbone", "Level", "dense_blocks"),
    "mimkit.parts.depth": ("set_drop_path",),
    "mimkit.parts.encoder": ("Backbone", "Encoder", "TimmModel"),
    "mimkit.parts.fitting": (
        "count_blocks",
        "misfits",
        "mlp_ratio",
        "require_axes",
        "require_fit",
        "square_patches",
    ),
    "mimkit.parts.flops": ("count_flops",),
    "mimkit.parts.frozen": ("freeze",),
    "mimkit.parts.head": ("Head",),
    "mimkit.parts.importer": ("Imported", "Importer"),
    "mimkit.parts.loss": ("Loss", "StepOutput", "Term"),
    "mimkit.parts.masker": ("Masker",),
    "mimkit.parts.part": ("Module", "Part"),
    "mimkit.parts.patches": ("paste", "patchify", "scatter", "take", "unpatchify"),
    "mimkit.parts.records": (
        "Batch",
        "Geometry",
        "Grid",
        "Mask",
        "Picture",
        "Tokens",
        "View",
        "Width",
    ),
    "mimkit.parts.state_dicts": ("Checkpoint", "unwrap"),
    "mimkit.parts.stream": ("Stream", "as_stream"),
    "mimkit.parts.target": ("Images", "Preparation", "Target"),
    "mimkit.track.base": ("Tracked", "Tracker"),
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
    "DenseBackbone",
    "DenseTransformer",
    "Depth",
    "Encoder",
    "Ended",
    "Evaluator",
    "Exportable",
    "Exporter",
    "Features",
    "Fraction",
    "Geometry",
    "Grid",
    "Head",
    "Images",
    "Imported",
    "Importer",
    "Launcher",
    "Level",
    "Loss",
    "Mask",
    "Masker",
    "MimkitError",
    "Module",
    "Multiple",
    "Needs",
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
    "Shown",
    "Size",
    "StepOutput",
    "Stream",
    "Subject",
    "Target",
    "Task",
    "Term",
    "TimmModel",
    "Tokens",
    "Tracked",
    "Tracker",
    "TrainingError",
    "View",
    "Width",
    "Work",
    "as_stream",
    "compare",
    "count_blocks",
    "count_flops",
    "dense_blocks",
    "evaluate",
    "freeze",
    "import_vit",
    "load_encoder",
    "misfits",
    "mlp_ratio",
    "painted",
    "paste",
    "patch_attention",
    "patchify",
    "read_checkpoint",
    "require_axes",
    "require_fit",
    "run",
    "scatter",
    "set_drop_path",
    "sincos",
    "sincos_grid",
    "square_patches",
    "take",
    "unpatchify",
    "unwrap",
]

if TYPE_CHECKING:
    from mimkit.api import Features, compare, evaluate, load_encoder, run
    from mimkit.builtin.dense import DenseTransformer
    from mimkit.builtin.plain_vit import import_vit
    from mimkit.builtin.positions import sincos, sincos_grid
    from mimkit.errors import (
        BoundaryError,
        DataError,
        MimkitError,
        PluginError,
        RecipeError,
        TrainingError,
    )
    from mimkit.evaluate.base import Evaluator, Result, Subject, Work
    from mimkit.evaluate.shown import Shown, painted
    from mimkit.export.base import Exportable, Exporter
    from mimkit.launch.base import Ended, Launcher, Needs, Task
    from mimkit.parts.attention import patch_attention
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
    from mimkit.parts.checkpoints import read_checkpoint
    from mimkit.parts.dense import DenseBackbone, Level, dense_blocks
    from mimkit.parts.depth import set_drop_path
    from mimkit.parts.encoder import Backbone, Encoder, TimmModel
    from mimkit.parts.fitting import (
        count_blocks,
        misfits,
        mlp_ratio,
        require_axes,
        require_fit,
        square_patches,
    )
    from mimkit.parts.flops import count_flops
    from mimkit.parts.frozen import freeze
    from mimkit.parts.head import Head
    from mimkit.parts.importer import Imported, Importer
    from mimkit.parts.loss import Loss, StepOutput, Term
    from mimkit.parts.masker import Masker
    from mimkit.parts.part import Module, Part
    from mimkit.parts.patches import paste, patchify, scatter, take, unpatchify
    from mimkit.parts.records import Batch, Geometry, Grid, Mask, Picture, Tokens, View, Width
    from mimkit.parts.state_dicts import Checkpoint, unwrap
    from mimkit.parts.stream import Stream, as_stream
    from mimkit.parts.target import Images, Preparation, Target
    from mimkit.track.base import Tracked, Tracker
    from mimkit.train.resumable import Resumable


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'mimkit' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)
