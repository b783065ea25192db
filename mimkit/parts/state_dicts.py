"""State dicts of other projects: found in their containers, freed of wrappers, checked."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import Tensor

from mimkit.errors import DataError

# Where programs put a state dict. Averaged weights come first: their authors judge and publish
# those. Of several the first is taken, and a note says so.
_CONTAINERS: Final = (
    "model_ema",
    "state_dict_ema",
    "ema",
    "teacher",
    "target_encoder",
    "model",
    "module",
    "state_dict",
    "model_state_dict",
    "network",
    "net",
    "student",
    "encoder",
)
# What torch puts between the names of a module that it wraps.
_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Attributes under which programs hold the whole model, or its encoder.
_PREFIXES: Final = ("module", "model", "backbone", "encoder", "network", "net")
COMPANIONS: Final = (
    "classifier",
    "decoder",
    "fc",
    "head",
    "lm_head",
    "mask_token",
    "neck",
    "predict",
    "project",
)
"""What may stand beside an encoder: names that begin so."""
_DEEPEST: Final = 4
_SHOWN: Final = 4


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    >>> Checkpoint({"norm.weight": torch.ones(3)}, {"lr": 1e-3}).number("lr", 0.1)
    0.001

    Args:
        tensors: the model's state dict, on the CPU. Whatever is a floating-point number is float32
            and finite.
        args: the options of the program that wrote it, as far as it kept them.
        notes: what the user should know of the choice among its contents, a line each.
    """

    tensors: Mapping[str, Tensor]
    args: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def number(self, name: str, default: float) -> float:
        """Returns an option of the program that wrote the file, if that is a number."""
        value = self.args.get(name)
        return float(value) if isinstance(value, int | float) else default

    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """Gives ``data.mean`` and ``data.std`` where the program's options say them, else nothing.

        >>> Checkpoint({}, {"imagenet_default_mean_and_std": False}).normalisation()["mean"]
        (0.5, 0.5, 0.5)

        Source: the option of microsoft/unilm and of the programs that grew from it.
        """
        imagenet = self.args.get("imagenet_default_mean_and_std")
        if imagenet is None:
            return {}
        if imagenet:
            return {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        return {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}


def unwrap(content: object, file: Path) -> Checkpoint:
    """Finds the state dict in what a file holds, and gives it the names of the bare model.

    A state dict is taken alone or under the names that programs use, averaged weights (``ema``,
    ``teacher``) before others. The wrappers of ``torch.compile`` and of parallel training are cut
    out of all names. ``module.``, ``model.``, ``backbone.``, ``encoder.``, ``network.`` and
    ``net.`` are taken off, also one below the other, where all names have them but those of a
    head, a decoder and the like.

    >>> weights = {"module.backbone.norm.bias": torch.ones(3), "module.head.bias": torch.ones(2)}
    >>> list(unwrap({"model": weights, "epoch": 7}, Path("x.pth")).tensors)
    ['norm.bias', 'head.bias']

    Args:
        content: what was read, nested mappings.
        file: for messages.

    Raises: DataError if it holds no state dict, a name is no text, two names become one, or a
        number is NaN or infinite.
    """
    if not isinstance(content, Mapping):
        raise DataError(
            f"{file}: must hold a state dict, but holds a {type(content).__name__}. Save that "
            "alone: torch.save(model.state_dict(), FILE)."
        )
    found = dict(_state_dicts(content, ()))
    if not found:
        inner = _innermost(content)
        entries = [repr(key) for key, value in inner.items() if not isinstance(value, Tensor)]
        raise DataError(
            f"{file}: must hold a state dict, alone or under {', '.join(map(repr, _CONTAINERS))}, "
            f"but its entries are {', '.join(entries[:5]) or 'none'}."
        )
    path, tensors = next(iter(found.items()))
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    return Checkpoint(
        _finite(_bare(tensors, file), file),
        args if isinstance(args, Mapping) else {},
        _choice(list(found)) if path else (),
    )


def fault(tensor: Tensor) -> str | None:
    """Says why a tensor cannot be a weight; None if it can.

    >>> fault(torch.tensor([1.0, float("nan")]))
    'has 1 of 2 values that are NaN or infinite'
    >>> fault(torch.tensor([1, 2]))
    'is of type int64 instead of a floating-point one'
    """
    if tensor.is_meta or not tensor.numel():
        return f"has shape {tuple(tensor.shape)}, but no values"
    if not tensor.is_floating_point():
        return (
            f"is of type {str(tensor.dtype).removeprefix('torch.')} instead of a floating-point one"
        )
    strange = int((~torch.isfinite(tensor)).sum())
    if strange:
        return f"has {strange:,} of {tensor.numel():,} values that are NaN or infinite"
    return None


def listed(words: list[str]) -> str:
    """Joins the first few of many, and says how many more there are."""
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more


def _state_dicts(
    content: Mapping[object, object], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Mapping[object, Tensor]]]:
    """Yields the state dicts below a mapping, each with the keys that lead to it."""
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and len(tensors) == len(content):
        yield path, tensors
        return
    for name in _CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and len(path) < _DEEPEST:
            yield from _state_dicts(inner, (*path, name))


def _innermost(content: Mapping[object, object], depth: int = 0) -> Mapping[object, object]:
    """Follows the first known container down to what should have been a state dict."""
    for name in _CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and depth < _DEEPEST:
            return _innermost(inner, depth + 1)
    return content


def _choice(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    if len(paths) == 1:
        return ()
    taken, *others = (".".join(path) for path in paths)
    way = "".join(f"[{name!r}]" for name in paths[1])
    return (
        f"the file holds several state dicts, of which '{taken}' is taken, not "
        f"{' or '.join(map(repr, others))}: averaged weights come before others. For another, "
        f"write it to a file of its own: torch.save(torch.load(FILE, weights_only=True){way}, NEW)",
    )


def _bare(tensors: Mapping[object, Tensor], file: Path) -> dict[str, Tensor]:
    strange = [key for key in tensors if not isinstance(key, str)]
    if strange:
        words = [f"{key!r} ({type(key).__name__})" for key in strange]
        raise DataError(
            f"{file}: the names of a state dict must be text, but it has {listed(words)}. Save "
            "what model.state_dict() gives."
        )
    names = [str(key) for key in tensors]
    # Parallel training may have wrapped a part of the model alone.
    new = [name.removeprefix("module.") for name in map(_without_wrappers, names)]
    while prefix := next((each for each in _PREFIXES if _is_common(each, new)), None):
        new = [name.removeprefix(f"{prefix}.") for name in new]
    if len(set(new)) < len(new):
        twice = next(name for number, name in enumerate(new) if name in new[:number])
        both = [old for old, name in zip(names, new, strict=True) if name == twice]
        raise DataError(
            f"{file}: must hold each weight once, but {' and '.join(both)} are both {twice} "
            "without what wraps the model. Save the state dict of one model alone."
        )
    return dict(zip(new, tensors.values(), strict=True))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_common(prefix: str, names: list[str]) -> bool:
    inside = [name for name in names if name.startswith(f"{prefix}.")]
    beside = [name for name in names if not name.startswith(f"{prefix}.")]
    return bool(inside) and all(name.startswith(COMPANIONS) for name in beside)


def _finite(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Returns what are numbers as float32; whole numbers, such as an index, stay."""
    weights: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, tensor in tensors.items():
        weights[name] = tensor.detach()
        if tensor.is_meta or tensor.is_floating_point():
            weights[name] = weights[name].to_dense().float()
            if reason := fault(weights[name]):
                faults.append(f"{name} {reason}")
    if faults:
        raise DataError(
            f"{file}: every weight must be a finite number, but {listed(faults)}. The training "
            "that wrote it has diverged, or the file is damaged: take an earlier or another one."
        )
    return weights
