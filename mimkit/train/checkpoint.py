"""Checkpoints: tensors as safetensors, the rest as JSON, checksums, the last two kept.

A module that is spread over processes gives a folder of files instead of one
(`mimkit.train.shards`). Whichever it was, any number of processes goes on from it.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mimkit.errors import DataError
from mimkit.files import sha256, write_json
from mimkit.train import shards
from mimkit.train.sharding import is_spread, spread_like
from mimkit.train.tensors import write_tensors

KEEP: Final = 2
_NAME: Final = re.compile(r"(step_\d+)(\.json|\.safetensors|-again)?")
_FRESH: Final = (
    "Start anew with --fresh, which removes what this run has made and begins again at step 0"
)


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk whose checksum was found right.

    Args:
        step: how many optimizer steps it has behind it.
        tensors: file, or folder, with tensors ``model.*``, ``optimizer.*`` and ``extra.*``.
        state: whatever else the loop wants back, plain data.
    """

    step: int
    tensors: Path
    state: dict[str, object]

    def part(self, prefix: str, like: shards.Like | None = None) -> dict[str, Tensor]:
        """Reads the tensors whose names begin with ``prefix``, and names them without it.

        Args:
            prefix: of the names.
            like: as which tensors they are spread over processes; None: none is.
        """
        if self.tensors.is_dir():
            return shards.read(self.tensors, prefix, like)
        with safe_open(self.tensors, "pt") as file:
            return {
                name.removeprefix(prefix): spread_like(
                    like(name.removeprefix(prefix)) if like else None, file.get_tensor(name)
                )
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
    exist. There is no random or loader state to save, as both follow from (seed, step). Where the
    module is spread over processes, all of them must call this at once.

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
    stem = f"step_{step:08d}"
    held: dict[str, object]
    if is_spread(module):
        held = shards.write(folder, stem, tensors)
        if dist.get_rank() != 0:
            return
    else:
        path = folder / f"{stem}.safetensors"
        write_tensors(path, tensors)
        held = {"sha256": sha256(path)}
    write_json(folder / f"{stem}.json", {"step": step, **held, "state": dict(state)})
    _tidy(folder, stem)


def _tidy(folder: Path, newest: str) -> None:
    """Removes all but the newest checkpoint and the one before, and what belongs to neither."""
    # What lies ahead of this step is damaged: training would have begun there otherwise.
    kept = [stem for stem in _stems(folder) if stem <= newest][:KEEP]
    needed = {folder / f"{stem}.json" for stem in kept} | {_tensors(folder, stem) for stem in kept}
    for path in folder.glob("step_*"):
        if path in needed or not _NAME.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def find(folder: Path) -> tuple[Saved | None, list[Damage]]:
    """Finds the newest checkpoint that is whole, and the damaged ones that are newer than it."""
    damaged: list[Damage] = []
    for number, stem in enumerate(_stems(folder)):
        if number == 0 and not (folder / f"{stem}.json").exists():
            continue  # a kill came between its two files: it never existed
        found = _read(folder, stem)
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
        module.load_state_dict(checkpoint.part("model.", module.state_dict(keep_vars=True).get))
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
    restore_optimizer(checkpoint, module, optimizer)


def restore_optimizer(
    checkpoint: Saved, module: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Loads what a checkpoint holds of the optimizer's state, by the names of the parameters.

    Entries of another shape than their parameter are left out, as where that is new.

    Returns: how many parameters have got theirs.
    """
    parameters = dict(module.named_parameters())
    tensors = checkpoint.part("optimizer.", lambda name: parameters.get(name.rpartition(".")[0]))
    state = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in parameters.items()}
    number = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[id(parameter)]}."
            entries = {
                name.removeprefix(prefix): _laid_out_as(parameter, value)
                for name, value in tensors.items()
                if name.startswith(prefix) and "." not in name.removeprefix(prefix)
            }
            if entries and all(v.ndim == 0 or v.shape == parameter.shape for v in entries.values()):
                state["state"][number] = entries
            number += 1
    optimizer.load_state_dict(state)
    return len(state["state"])


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Gives an entry the strides that the optimizer would have made it with.

    Files hold tensors row by row. Kernels round otherwise for other strides, and a run that goes on
    must not end with other weights.
    """
    if value.shape != parameter.shape or isinstance(value, DTensor):
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _stems(folder: Path) -> list[str]:
    """Names all checkpoints, whole or not, newest first."""
    found = [_NAME.fullmatch(path.name) for path in folder.glob("step_*")]
    return sorted({match[1] for match in found if match}, reverse=True)


def _tensors(folder: Path, stem: str) -> Path:
    """Where the tensors of a checkpoint lie, as far as its record can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        return folder / Path(record["folder"]).name
    return folder / (stem if (folder / stem).is_dir() else f"{stem}.safetensors")


def _read(folder: Path, stem: str) -> Saved | Damage:
    """Reads one checkpoint and compares its checksum."""
    tensors, record_file = _tensors(folder, stem), folder / f"{stem}.json"
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        step, digest, state = record["step"], record["sha256"], record["state"]
    except OSError as error:
        return Damage(tensors, f"{record_file.name}: {error.strerror or error}")
    except (ValueError, KeyError, TypeError):
        return Damage(tensors, f"{record_file.name} is not what was written")
    try:
        whole = (
            shards.is_whole(tensors, digest)
            if isinstance(digest, dict)
            else sha256(tensors) == digest
        )
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
