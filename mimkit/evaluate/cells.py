"""Finished pieces of an evaluation, kept so that a killed run repeats none of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from mimkit.files import write_text

_VERSION: Final = 2
"""Rises when the same options come to mean another measurement, or a cell keeps more of it."""


class Cells:
    """A file with one JSON line for every finished cell.

    A cell is found again by everything its result depends on, so a changed option, subset or
    weight is measured anew, never mistaken for what was measured before.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._records: dict[str, dict[str, Any]] = {}
        for line in lines:
            record = json.loads(line)
            self._records[record["key"]] = record

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns a finished cell, or None."""
        return self._records.get(key)

    def add(self, key: str, record: Mapping[str, object]) -> None:
        """Writes a finished cell down; the file is whole at every moment."""
        self._records[key] = {"key": key, **record}
        text = "".join(json.dumps(record) + "\n" for record in self._records.values())
        write_text(self.path, text)


def cell_key(**depends_on: object) -> str:
    """Returns a short name for everything a result depends on; the values are plain data.

    The rules of measuring are part of it, so that what an earlier version has kept is not taken.
    """
    text = json.dumps([_VERSION, depends_on], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def digest(module: nn.Module) -> str:
    """Returns a hexadecimal digest of all weights and buffers of a module."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()
