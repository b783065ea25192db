"""Importers: the checkpoints of other projects."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Imported:
    """What an `Importer` found in a checkpoint.

    >>> Imported({"encoder": {"part": "vit", "depth": 2}}, encoder={}).notes
    ()

    Args:
        settings: tables of a recipe that follow from the file, as nested mappings: the encoder
            with all of its options, the image's and the patches' size, and whatever else it fixes.
        encoder: state dict of that encoder; buffers and new tokens may lack.
        head: state dict of the recipe's head, or empty if the file holds none.
        notes: what the user should know, a line each.
    """

    settings: Mapping[str, Any]
    encoder: Mapping[str, Tensor]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Importer(ABC):
    """Reads the checkpoints of another project.

    >>> class Flat(Importer):
    ...     def read(self, file):
    ...         weights = read_checkpoint(file).tensors
    ...         return Imported({"encoder": {"part": "vit"}}, weights)

    Attributes:
        recipe: the registered recipe whose remaining tables (data, training, evaluation) an
            imported run gets.
    """

    recipe: ClassVar[str]

    @abstractmethod
    def read(self, file: Path) -> Imported:
        """Reads a checkpoint without running any code that it may hold.

        Raises: DataError if the file is none of the known layouts.
        """
