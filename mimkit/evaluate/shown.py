"""Pictures that an evaluation leaves to be looked at: a few test images, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimkit.files import write_atomic, write_json

IMAGE: Final = "image"
TRUTH: Final = "truth"
"""Columns that are the same for all methods; others are called after a start (`Result.init`)."""
COLOURS: Final = "colours.json"
"""In a folder of pictures: name to colour of what is painted."""
NUM_SHOWN: Final = 6
_GREY: Final = 128
_COVER: Final = 0.6
"""Of what is painted over an image."""


@dataclass(frozen=True)
class Shown:
    """A folder of pictures: ``COLUMN/NUMBER.png``, the number being that of the test image.

    >>> import tempfile
    >>> shown = Shown.some_of(Path(tempfile.mkdtemp()), torch.tensor([3, 5, 8]))
    >>> shown.add("pretrained", 5, torch.zeros(3, 8, 8, dtype=torch.uint8))
    >>> [path.name for path in shown.folder.glob("pretrained/*.png")]
    ['5.png']

    The report puts pictures of one number into a row, and those of all methods side by side.

    Args:
        folder: ``shown`` in an evaluator's ``workdir``.
        index: numbers of the images that are shown.
    """

    folder: Path
    index: tuple[int, ...]

    @classmethod
    def some_of(cls, workdir: Path, test: Tensor) -> Shown:
        """Chooses a few of the judged images, (m,) int64, evenly spaced."""
        places = torch.arange(min(NUM_SHOWN, len(test)))
        return cls(workdir / "shown", tuple(test[places * len(test) // len(places)].tolist()))

    def explain(self, names: Sequence[str]) -> None:
        """Says what the colours of `painted` stand for, by the names of classes."""
        colours = ("#%02x%02x%02x" % tone for tone in _palette(len(names)))  # noqa: UP031
        write_json(self.folder / COLOURS, dict(zip(names, colours, strict=True)))

    def add(self, column: str, number: int, picture: Tensor) -> None:
        """Keeps a picture, (3, H, W) uint8."""
        image = Image.fromarray(picture.cpu().permute(1, 2, 0).contiguous().numpy())
        path = self.folder / column / f"{number}.png"
        write_atomic(path, lambda temporary: image.save(temporary, "PNG"))


def visible(image: Tensor) -> Tensor:
    """Makes any image one to look at: its first three channels, or the first alone in grey.

    >>> visible(torch.ones(6, 1, 1))[:, 0, 0]
    tensor([255, 255, 255], dtype=torch.uint8)

    Shape: image (C, H, W) uint8, or float32 in [0, 1]; (3, H, W) uint8.
    """
    if image.dtype != torch.uint8:
        image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


def painted(image: Tensor, classes: Tensor) -> Tensor:
    """Paints the class of every pixel over an image; what is not judged is grey.

    >>> painted(torch.zeros(3, 1, 2, dtype=torch.uint8), torch.tensor([[0, -1]]))[:, 0, 1]
    tensor([77, 77, 77], dtype=torch.uint8)

    Shape: image (3, H, W) uint8, classes (H, W) int64, negative for none; (3, H, W) uint8.
    """
    colours = torch.tensor([*_palette(int(classes.max()) + 1), (_GREY,) * 3])
    paint = colours[classes].permute(2, 0, 1)  # the last colour is that of -1
    return (_COVER * paint + (1 - _COVER) * image).round().to(torch.uint8)


def _palette(count: int) -> Sequence[tuple[int, int, int]]:
    listed = np.asarray(matplotlib.colormaps["tab20"].colors)  # type: ignore[attr-defined]
    # Full colours first, then their pale companions.
    ordered = np.concatenate([listed[::2], listed[1::2]])
    tones = (ordered[np.arange(count) % len(ordered)] * 255).round().astype(int)
    return [(r, g, b) for r, g, b in tones.tolist()]
