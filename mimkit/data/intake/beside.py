"""JSON files beside images that may say what these show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mimkit.data.intake.walk import Tree
from mimkit.data.intake.words import word_in, word_of

_MANY: Final = 20
"""A folder with more JSON files has one for each image, which are not looked into."""
_OTHERS: Final = ("caption", "keypoint", "panoptic", "stuff", "image_info", "question")
"""What names of files say that hold something else of the same images."""


def annotation_files(tree: Tree) -> tuple[str, ...]:
    """Paths below the root of JSON files, in folders of images or at most one folder deep."""
    found: list[str] = []
    for folder in tree.folders:
        if folder.images or len(folder.parts) <= 1:
            files = [name for name in folder.others if name.lower().endswith(".json")]
            found += map(folder.path, files if len(files) <= _MANY else [])
    return tuple(found)


def words_of(path: str) -> set[str]:
    """The words for splits in the name of a file and of the folders that lead to it.

    >>> words_of("annotations/instances_val2017.json"), words_of("valid/_annotations.coco.json")
    ({'val'}, {'valid'})
    """
    *folders, name = path.split("/")
    words = [*map(word_of, folders), word_in(name.removesuffix(".json"))]
    return {word for word in words if word}


def is_of_other_kind(path: str) -> bool:
    """Whether a name says that the file holds something else than objects."""
    name = path.rpartition("/")[2].lower()
    return any(word in name for word in _OTHERS)


def called_after(word: str, files: Sequence[str]) -> Iterator[str]:
    """Those files that are called after a split."""
    return (path for path in files if word in words_of(path) and not is_of_other_kind(path))
