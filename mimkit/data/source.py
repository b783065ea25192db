"""One split of a data set, opened: its images, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimkit.data.intake.table import Skipped
from mimkit.data.pixels.augment import Augment
from mimkit.data.pixels.raster import Raster, Scale
from mimkit.data.pixels.readers import MeetingReader, Reader
from mimkit.data.pixels.views import render
from mimkit.data.registered import Split
from mimkit.data.truth.records import Masks, Objects
from mimkit.parts.records import View

_SHOWN: Final = 4
"""So many names of classes are printed."""


@dataclass(frozen=True, eq=False)
class Source:
    """One split of a data set, opened.

    Args:
        name: as the recipe calls the data set.
        split: ``"train"`` or ``"test"``.
        origin: where it was found.
        classes: the names that labels number; () if there are no labels.
        labels: (N,) int64, -1 for single images without one; None if no image has one.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        fingerprint: changes whenever images, labels or their order change.
        sizes: (N, 2) int32, heights and widths; None if images are looked at when they are met.
        skipped: what is not used, and why.
        note: what readers of results must know of how the split came about, or nothing.
        pixels: (N, C, H, W) uint8, or float32 in [0, 1], if all images have one size of at most 64
            pixels, else None.
        reader: decodes one image; None where there are pixels.
        key: of what is cached of it; "" where nothing is.
        rows: (N,) int64, which rows of its table the images are; None if they are all.
        masks: the class of every pixel; None if that is not known.
        objects: what the images show, and where; None if that is not known.
        scale: the stored values that became 0 and 1; None: images are in 8 bits.
        shards: where each file ends in which images lie one after the other; () if each image is
            within reach alike, as decoded ones are.
    """

    name: str
    split: Split
    origin: str
    classes: tuple[str, ...]
    labels: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    sizes: Tensor | None
    skipped: tuple[Skipped, ...] = ()
    note: str = ""
    pixels: Tensor | None = None
    reader: Reader | None = None
    key: str = ""
    rows: NDArray[np.int64] | None = None
    masks: Masks | None = None
    objects: Objects | None = None
    scale: Scale | None = None
    shards: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._meeting if self.sizes is None else self.sizes)

    def extent(self, index: Tensor) -> Tensor:
        """Tells heights and widths of images, (n, 2) int32, for (n,) int64 on the CPU.

        Raises: DataError if an image that was not looked at before cannot be read, nor replaced.
        """
        if self.sizes is None:
            return torch.from_numpy(self._meeting.measure(index.numpy()))
        return self.sizes[index]

    def unread(self) -> tuple[Skipped, ...]:
        """Lists what is not used, and what was met so far and cannot be read."""
        return self.skipped + (self._meeting.broken() if self.sizes is None else ())

    @property
    def _meeting(self) -> MeetingReader:
        return cast(MeetingReader, self.reader)

    def image(self, index: int, shrink: int = 1) -> Raster:
        """Returns an image, in 8 bits or float32 in [0, 1].

        At its full size, or up to ``shrink`` times smaller.

        Raises: DataError if its file can no longer be read.
        """
        if self.pixels is not None:
            return Raster.of(self.pixels[index].permute(1, 2, 0).cpu().numpy())
        assert self.reader is not None
        return self.reader(index, shrink)

    def view(self, index: Tensor, view: View) -> Tensor:
        """Renders whole images, not augmented.

        Shape: index (n,) int64; (n, C, H, W) float32 on the CPU.
        """
        return render(self, index, view, None, Augment.none()).cpu()

    def to(self, device: torch.device | str) -> Source:
        """Returns the same source with its decoded pixels, if it has any, on a device."""
        return self if self.pixels is None else replace(self, pixels=self.pixels.to(device))

    def describe(self) -> str:
        """Says what was opened, in one line and one more for each oddity."""
        first = f"{self.name} {self.split}: {len(self):,} images {self.kind}"
        return "\n".join((first, *self.oddities))

    @property
    def kind(self) -> str:
        """Size, classes and origin of the images, in words."""
        if self.sizes is None:
            size = "not looked at before they are met (data.survey = false)"
        else:
            height, width = self.sizes[0].tolist()
            alike = bool((self.sizes == self.sizes[0]).all())
            size = f"of {width} x {height} px" if alike else "of several sizes"
        classes = f"{len(self.classes)} classes ({_some(self.classes)})"
        if not self.classes:
            classes = "no labels"
        elif self.labels is not None and bool((self.labels < 0).any()):
            classes += f", {int((self.labels < 0).sum()):,} images without a label"
        return f"{size}, {classes}, {self.origin}"

    @property
    def oddities(self) -> list[str]:
        """What else is worth a line: how files were read, which were not."""
        lines = [f"  {self.note}"] if self.note else []
        if self.masks is not None:
            lines += [f"  {said}" for said in (self.masks.kind, self.masks.note) if said]
            unusable = self.masks.skipped
            lines += _listed(f"mask{'s' * (len(unusable) != 1)} cannot be used", unusable)
        if self.objects is not None and self.objects.kind:
            lines.append(f"  objects: {self.objects.kind}")
        unread = self.unread()
        return lines + _listed("skipped", unread)


def described(*sources: Source) -> list[str]:
    """Says what was opened, each data set once: its splits share a line where they are alike."""
    by_kind: dict[tuple[str, str], list[Source]] = {}
    for source in sources:
        by_kind.setdefault((source.name, source.kind), []).append(source)
    found = []
    for (name, kind), alike in by_kind.items():
        if len(alike) == 1:
            found += alike[0].describe().split("\n")
            continue
        counts = " and ".join(f"{len(one):,} {one.split}" for one in alike)
        oddities = dict.fromkeys(line for one in alike for line in one.oddities)
        found += [f"{name}: {counts} images {kind}", *oddities]
    return found


def _listed(what: str, items: Sequence[Skipped]) -> list[str]:
    if not items:
        return []
    first = [f"    {item.path} {item.reason}" for item in items[:3]]
    return [f"  {len(items):,} {what}, all listed in the ledger; the first:", *first]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
