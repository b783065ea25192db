"""Checkpoints: tensors as safetensors, the rest as JSON, checksums, the last two kept."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mimkit.errors import DataError
from mimkit.files import sha256, write_json
from mimkit.train.tensors import write_tensors

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksum was found right.

    Args:
        step: how many optimizer steps it has behind it.
        tensors: file with ``model.*`` and ``optimizer.*`` tensors.
        state: whatever else the loop wants back, plain data.
    """

    step: int
    tensors: Path
    state: dict[str, object]


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, object],
) -> None:
    """Writes the checkpoint of ``step`` and removes all but the newest two.

    The JSON file, which holds the checksum, is written last: a checkpoint without it does not
    exist. There is no random or loader state to save, as both follow from (seed, step).

    Raises: DataError if the disk is full; earlier checkpoints are then intact.
    """
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    for name, entries in _optimizer_state(module, optimizer).items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in entries.items()}
    path = folder / f"step_{step:08d}.safetensors"
    write_tensors(path, tensors)
    write_json(path.with_suffix(".json"), {"step": step, "sha256": sha256(path), "state": state})
    for old in sorted(folder.glob("step_*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def latest(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Finds the newest checkpoint that is whole; damaged ones are reported and passed over."""
    for path in sorted(folder.glob("step_*.json"), reverse=True):
        tensors = path.with_suffix(".safetensors")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            step, digest, state = record["step"], record["sha256"], record["state"]
            whole = tensors.is_file() and sha256(tensors) == digest
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
            whole = False
        if whole:
            return Checkpoint(step, tensors, state)
        report(
            f"{tensors}: this checkpoint is damaged (its checksum differs); using the one before."
        )
    return None


def restore_weights(checkpoint: Checkpoint, module: nn.Module) -> None:
    """Loads a checkpoint into a module of the same recipe.

    Raises: DataError if names or shapes do not match.
    """
    with safe_open(checkpoint.tensors, "pt") as file:
        model = {
            name.removeprefix("model."): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 -- it is no dictionary
            if name.startswith("model.")
        }
    try:
        module.load_state_dict(model)
    except RuntimeError as error:
        raise DataError(
            f"{checkpoint.tensors}: this checkpoint does not fit the recipe's parts; a part has "
            f"changed since it was written. Start anew with --fresh. Details: {error}"
        ) from error


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Loads a checkpoint into a module and an optimizer of the same recipe.

    Raises: DataError if names or shapes do not match.
    """
    restore_weights(checkpoint, module)
    tensors = load_file(checkpoint.tensors)
    state = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    number = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"optimizer.{names[id(parameter)]}."
            entries = {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix) and "." not in name.removeprefix(prefix)
            }
            if entries:
                state["state"][number] = entries
            number += 1
    optimizer.load_state_dict(state)


def _optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
    }
