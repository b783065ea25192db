"""How stored values become pixels in [0, 1], and what is known of their mean and deviation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mimkit.data.looking.stored import Stored
from mimkit.data.pixels.form import RGB, Form
from mimkit.data.pixels.raster import Scale
from mimkit.data.registered import IMAGENET_MEAN, IMAGENET_STD, DataSet
from mimkit.recipe.sections import DataSection


@dataclass(frozen=True)
class Values:
    """How stored values become pixels.

    Args:
        form: what images are made into.
        scale: stored values that become 0 and 1; None: images stay in 8 bits.
        mean: by channel, of pixels in [0, 1].
        std: likewise.
        note: what to say of it, or nothing.
    """

    form: Form
    scale: Scale | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""

    @classmethod
    def of(cls, form: Form, dataset: DataSet | None, stored: Stored | None) -> Values:
        """Takes what is known of a data set, or of 8-bit RGB, else what was measured."""
        if stored is None:
            mean, std = (dataset.mean, dataset.std) if dataset else (IMAGENET_MEAN, IMAGENET_STD)
            return cls(form, None, mean, std)
        return cls(form, stored.scale(form), *stored.statistics(form), stored.note(form))

    def fingerprint(self, of_files: str) -> str:
        """Tells the same files made into other pixels apart."""
        if self.scale is None and self.form.channels == RGB:
            return of_files
        return hashlib.sha256(f"{of_files}\0{self.form.channels} {self.scale}".encode()).hexdigest()


def form_of(section: DataSection) -> Form:
    """Says what a recipe wants images to be."""
    return Form(section.channels, section.range)
