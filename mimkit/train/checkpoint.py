"""Checkpoints: tensors as safetensors, the rest as JSON, checksums, the last two kept."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mimkit.errors import DataError
from mimkit.files import sha256, write_json
from mimkit.train.tensors import write_tensors

KEEP: Final = 2
_FRESH: Final = (
    "Start anew with --fresh, which removes what this run has made and begins again at step 0"
)


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk whose checksum was found right.

    Args:
        step: how many optimizer steps it has behind it.
        tensors: file with ``model.*``, ``optimizer.*`` and ``extra.*`` tensors.
        state: whatever else the loop wants back, plain data.
    """

    step: int
    tensors: Path
    state: dict[str, object]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Reads the tensors whose names begin with ``prefix``, and names them without it."""
        with safe_open(self.tensors, "pt") as file:
            return {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 -- it is no dictionary
                if name.startswith(prefix)
            }


@dataclass(frozen=True)
class Damage:
    """A checkpoint that cannot be used.

    Args:
        tensors: its larger file.
        reason: why, in a few words.
    """

    tensors: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.tensors} ({self.reason})"


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, object],
    *,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the checkpoint of ``step`` and removes all but it and the one before.

    The JSON file, which holds the checksum, is written last: a checkpoint without it does not
    exist. There is no random or loader state to save, as both follow from (seed, step).

    Args:
        folder: where checkpoints lie.
        step: how many optimizer steps it has behind it.
        module: its state dict is saved.
        optimizer: over parameters of ``module``; its state must be tensors.
        state: plain data.
        extra: further tensors.

    Raises: DataError if the disk is full; earlier checkpoints are then intact.
    """
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    for name, entries in _optimizer_state(module, optimizer).items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in entries.items()}
    tensors |= {f"extra.{name}": value for name, value in (extra or {}).items()}
    path = folder / f"step_{step:08d}.safetensors"
    write_tensors(path, tensors)
    record = {"step": step, "sha256": sha256(path), "state": dict(state)}
    write_json(path.with_suffix(".json"), record)
    # What lies ahead of this step is damaged: training would have begun there otherwise.
    kept = [stem for stem in _stems(folder) if stem <= path.stem][:KEEP]
    for stem in set(_stems(folder)) - set(kept):
        for suffix in (".json", ".safetensors"):
            (folder / f"{stem}{suffix}").unlink(missing_ok=True)


def find(folder: Path) -> tuple[Saved | None, list[Damage]]:
    """Finds the newest checkpoint that is whole, and the damaged ones that are newer than it."""
    damaged: list[Damage] = []
    for number, stem in enumerate(_stems(folder)):
        tensors = folder / f"{stem}.safetensors"
        if number == 0 and not tensors.with_suffix(".json").exists():
            continue  # a kill came between its two files: it never existed
        found = _read(tensors)
        if isinstance(found, Saved):
            return found, damaged
        damaged.append(found)
    return None, damaged


def latest(folder: Path, report: Callable[[str], None]) -> Saved | None:
    """Finds the newest checkpoint that is whole, and says which damaged ones it passed over.

    Returns: None if there is no checkpoint at all.
    Raises: DataError if there are some, but all are damaged.
    """
    found, damaged = find(folder)
    if not damaged:
        return found
    names = " and ".join(map(str, damaged))
    if found is None:
        raise DataError(
            f"{names}: {'the only checkpoint' if len(damaged) == 1 else 'all checkpoints'} of this "
            "run cannot be read, so it cannot go on. If there is a copy, put it back, both "
            f".safetensors and .json. {_FRESH}."
        )
    report(f"{names}: this checkpoint is damaged; using the one before, of step {found.step:,}")
    return found


def restore_weights(checkpoint: Saved, module: nn.Module, advice: str = _FRESH) -> None:
    """Loads a checkpoint into a module of the same recipe.

    Raises: DataError if names or shapes do not match; it ends with ``advice``.
    """
    try:
        module.load_state_dict(checkpoint.part("model."))
    except RuntimeError as error:
        raise DataError(
            f"{checkpoint.tensors}: this checkpoint does not fit the parts that it is for; one has "
            f"changed since it was written. {advice}. Details: {error}"
        ) from error


def restore(
    checkpoint: Saved,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    advice: str = _FRESH,
) -> None:
    """Loads a checkpoint into a module and an optimizer of the same recipe.

    Raises: DataError if names or shapes do not match; it ends with ``advice``.
    """
    restore_weights(checkpoint, module, advice)
    tensors = checkpoint.part("optimizer.")
    state = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    number = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[id(parameter)]}."
            entries = {
                name.removeprefix(prefix): _laid_out_as(parameter, value)
                for name, value in tensors.items()
                if name.startswith(prefix) and "." not in name.removeprefix(prefix)
            }
            if entries:
                state["state"][number] = entries
            number += 1
    optimizer.load_state_dict(state)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Gives an entry the strides that the optimizer would have made it with.

    Files hold tensors row by row. Kernels round otherwise for other strides, and a run that goes on
    must not end with other weights.
    """
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _stems(folder: Path) -> list[str]:
    """Names all checkpoints, whole or not, newest first."""
    files = [*folder.glob("step_*.json"), *folder.glob("step_*.safetensors")]
    return sorted({path.stem for path in files}, reverse=True)


def _read(tensors: Path) -> Saved | Damage:
    """Reads one checkpoint and compares its checksum."""
    record_file = tensors.with_suffix(".json")
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        step, digest, state = record["step"], record["sha256"], record["state"]
    except OSError as error:
        return Damage(tensors, f"{record_file.name}: {error.strerror or error}")
    except (ValueError, KeyError, TypeError):
        return Damage(tensors, f"{record_file.name} is not what was written")
    try:
        whole = sha256(tensors) == digest
    except OSError as error:
        return Damage(tensors, str(error.strerror or error))
    if not whole:
        return Damage(tensors, "its checksum differs")
    return Saved(step, tensors, state)


def _optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
    }
