"""Features that are too many for main memory: on disk, in half precision."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mimkit.errors import DataError
from mimkit.files import make_folder, writing

_BYTES: Final = 2
_ROWS: Final = 65_536
"""So many are read at once."""
_LARGEST: Final = torch.finfo(torch.float16).max
_LEAST: Final = 1e-4
"""Less deviation than this share of a column's values is no unit to count in."""


class OnDisk:
    """A table of numbers in a file without a name, which ends with this process, also by a kill.

    A column is kept as the distance from the mean of the rows that are written first, in units of
    their deviation: else 16 bits leave little of one that hardly varies about a large value. What
    is read is wrong by at most 1 / 2048 of that distance.

    Args:
        folder: on whose disk it lies.
        num_rows: of the table.
        num_columns: D.

    Raises: DataError if the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path, num_rows: int, num_columns: int) -> None:
        self.shape = (num_rows, num_columns)
        make_folder(folder)
        with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would be noticed by a crash
                os.posix_fallocate(file.fileno(), 0, num_rows * num_columns * _BYTES)
            self._table = torch.from_numpy(np.memmap(file, np.float16, "w+", shape=self.shape))
        self._mean: Tensor | None = None
        self._unit = torch.empty(0)

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        """Writes some rows, (n, D)."""
        values = values.float()
        if self._mean is None:
            self._mean = values.mean(0)
            unit = values.std(0, correction=0).maximum(_LEAST * values.abs().amax(0))
            self._unit = torch.where(unit == 0, 1.0, unit)
        counted = (values - self._mean) / self._unit
        self._table[rows] = counted.clamp(-_LARGEST, _LARGEST).half().cpu()

    def to(self, device: torch.device) -> Tensor:
        """Reads all rows, (n, D) float32 on a device."""
        found = torch.empty(self.shape, device=device)
        assert self._mean is not None
        mean, unit = self._mean.to(device), self._unit.to(device)
        for part, whole in zip(
            torch.split(self._table, _ROWS), torch.split(found, _ROWS), strict=True
        ):
            whole.copy_(part).mul_(unit).add_(mean)
        return found


def refuse_full_disk(folder: Path, num_images: int, num_values: int) -> None:
    """Refuses tables of so many values of each image together, if the disk has no room.

    Raises: DataError.
    """
    make_folder(folder)
    needed, free = num_images * num_values * _BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: features of {num_images:,} images need {needed / 1e9:,.1f} GB on this "
            f"disk, but {free / 1e9:,.1f} GB are free. Free some space, then repeat the same "
            "command to go on; or ask for fewer pools, or for layers = 'last'."
        )
