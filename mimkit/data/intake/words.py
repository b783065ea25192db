"""The names by which people call splits, images and masks."""

import re
from typing import Final

TRAIN_WORDS: Final = ("train", "training")
TEST_WORDS: Final = (
    *("test", "testing", "val", "valid", "validation"),
    *("dev", "eval", "evaluation"),
)
"""Best first: where several are labelled, the first is the test split."""
_IMAGE_WORDS: Final = frozenset(
    ("image", "images", "img", "imgs", "input", "inputs", "jpegimages", "leftimg8bit", "photos")
)
_MASK_WORDS: Final = (
    *("mask", "masks", "annotation", "annotations", "annot", "label", "labels", "gt", "gtfine"),
    *("gtcoarse", "groundtruth", "ground_truth", "segmentation", "segmentations", "trimaps"),
    *("segmentationclass", "segmentationobject", "target", "targets"),
)
_SEPARATORS: Final = re.compile(r"[^a-z]+")
_YEAR: Final = re.compile(r"(?<=[a-z])(19|20)\d\d$")


def word_of(name: str) -> str | None:
    """The word for a split that a name is, whatever its case, or None; a year may follow.

    >>> word_of("val2017"), word_of("Train"), word_of("train2")
    ('val', 'train', None)
    """
    lower = _YEAR.sub("", name.lower())
    return lower if lower in TRAIN_WORDS or lower in TEST_WORDS else None


def word_in(name: str) -> str | None:
    """The one word for a split among those that a name is made of, as in ``cats-train-0``."""
    found = {part for part in _SEPARATORS.split(name.lower()) if word_of(part)}
    return found.pop() if len(found) == 1 else None


def is_mask_word(name: str) -> bool:
    """Whether a column of images of this name holds masks, as ``mask`` or ``label_mask``."""
    return any(part in _MASK_WORDS for part in (name.lower(), *_SEPARATORS.split(name.lower())))


def masks_among(names: frozenset[str]) -> frozenset[str]:
    """Which of the folders beside one another hold masks of what lies in the others.

    ``masks`` beside ``images``, and ``train_masks`` or ``trainannot`` beside ``train``.
    """
    lower = {name.lower(): name for name in names}
    found = set(_MASK_WORDS) & lower.keys() if _IMAGE_WORDS & lower.keys() else set()
    for name in lower:
        for word in _MASK_WORDS:
            rest = name.removesuffix(word).rstrip("_- ")
            if rest != name and rest in lower:
                found.add(name)
    return frozenset(lower[name] for name in found)
