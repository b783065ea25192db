"""Masks that lie on disk, as those of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.table import Skipped, Table
from mimkit.data.pixels.unreadable import UnreadableError
from mimkit.data.registered import Split
from mimkit.data.truth.ids import Numbering, number, read_ids
from mimkit.data.truth.look import MaskSurvey, some_ids
from mimkit.errors import DataError

_SHOWN: Final = 4


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """The masks of a split's images, in files or a column.

    Args:
        table: the images with their masks.
        rows: (N,) int64, the rows of the split.
        survey: what was found in the masks.
        numbering: which class each id is, in all splits alike.
        where: the folder or column, in words.
    """

    table: Table
    rows: NDArray[np.int64]
    survey: MaskSurvey
    numbering: Numbering
    where: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that masks number."""
        return self.numbering.classes

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the masks' files and with what their ids stand for."""
        digest = hashlib.sha256(self.survey.counts.tobytes() + self.numbering.codes.tobytes())
        assert self.table.masks is not None
        return hashlib.sha256(digest.digest() + self.table.masks.digest.encode()).hexdigest()

    @property
    def kind(self) -> str:
        """What was found, in words."""
        names = ", ".join(self.classes[:_SHOWN]) + (", ..." if len(self.classes) > _SHOWN else "")
        images, classes = len(self.usable()), len(self.classes)
        said = f"masks of {images:,} image{'s' * (images != 1)}"
        if classes:
            said += f", {classes} class{'es' * (classes != 1)} ({names})"
        ignored = self.numbering.ignored
        if ignored:
            said += f", id{'s' * (len(ignored) > 1)} {some_ids(ignored)} not judged"
        return f"{said}, {self.where}"

    @property
    def note(self) -> str:
        """Ids that nobody named and that are not judged, in words; nothing if there are none."""
        ids = list(self.numbering.strangers)
        counts = self.survey.counts
        held = int((counts[:, ids] > 0).any(axis=1).sum()) if ids else 0
        if not held:
            return ""
        share = counts[:, ids].sum(dtype=np.int64) / max(1, counts.sum(dtype=np.int64))
        return (
            f"id{'s' * (len(ids) > 1)} {some_ids(ids)} of {held:,} masks ({100 * share:.2g} % of "
            "the pixels) have no name and are not judged (data.mask_ignore says which are not)"
        )

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Masks that cannot be used, and those without a pixel to judge."""
        masks = self.table.masks
        assert masks is not None
        found = [
            Skipped(masks.where(self._number(index)), f"mask {reason}" if reason else "has no mask")
            for index, reason in self.survey.problems.items()
        ]
        known = set(self.usable().tolist()) | self.survey.problems.keys()
        empty = [index for index in range(len(self.rows)) if index not in known]
        reason = "mask without a pixel that is judged"
        return (*found, *(Skipped(masks.where(self._number(index)), reason) for index in empty))

    def usable(self) -> NDArray[np.int64]:
        """Says which images have a mask with a pixel to judge."""
        judged = self.survey.counts[:, self.numbering.codes >= 0]
        return np.flatnonzero(judged.any(axis=1))

    def __call__(self, index: int) -> NDArray[np.int64]:
        """Gives the class of every pixel of an image."""
        masks, contents = self.table.masks, self._number(index)
        assert masks is not None
        try:
            content = masks.content(contents)
            if content is None:
                raise UnreadableError("is no longer there")
            ids = read_ids(content)
        except (OSError, UnreadableError) as error:
            raise DataError(
                f"{masks.where(contents)}: must still be the mask that it was when it was first "
                f"looked at, but: {error}. Mend or remove it, then repeat the command."
            ) from error
        found: NDArray[np.int64] = self.numbering.codes[ids]
        return found

    def _number(self, index: int) -> int:
        return int(self.table.rows[self.rows[index]])


@dataclass(frozen=True, eq=False)
class Looked:
    """A split whose masks have been looked at, before it is known which class each id is.

    Args:
        table: the images with their masks.
        rows: (N,) int64, the rows of the split.
        survey: what was found in the masks.
        where: the folder or column, in words.
    """

    table: Table
    rows: NDArray[np.int64]
    survey: MaskSurvey
    where: str


def numbered(
    splits: Mapping[Split, Looked], names: Sequence[str] | None, ignore: Sequence[int] | None
) -> dict[Split, MaskFiles]:
    """Numbers the classes of all splits alike.

    Args:
        splits: by name.
        names: what ids stand for, from 0 on; None if that is not known.
        ignore: ids that are not judged; None for 255.
    """
    occurs = np.any([one.survey.counts.any(axis=0) for one in splits.values()], axis=0)
    numbering = number(occurs, names, ignore)
    return {
        name: MaskFiles(one.table, one.rows, one.survey, numbering, one.where)
        for name, one in splits.items()
    }
