"""What folders mean: which are splits, which are classes, which hold masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mimkit.data.intake.beside import annotation_files, called_after
from mimkit.data.intake.places import KEY, Findings, Meaning, Part, shared, some, whole
from mimkit.data.intake.splits import find_splits, without_masks
from mimkit.data.intake.table import Skipped
from mimkit.data.intake.walk import Folder, Tree
from mimkit.data.intake.words import word_of
from mimkit.errors import DataError


@dataclass(frozen=True)
class Layout:
    """What the folders of a data set mean.

    Args:
        train: the training part.
        test: the test part; None: a part of train is to be held out.
        classes: names of the classes, or ().
        unused: folders that belong to neither.
        notes: what people must know of the splits.
        label_notes: and of the classes.
        masks: folders of masks.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    unused: tuple[Skipped, ...]
    notes: tuple[str, ...]
    label_notes: tuple[str, ...] = ()
    masks: tuple[Folder, ...] = ()


def arrange(
    tree: Tree,
    meaning: Meaning,
    labelled: Callable[[Part], bool] | None = None,
    masks: str | None = None,
) -> Layout:
    """Decides what folders mean.

    ``auto``: folders called as splits are (`words`) are splits, if there are two; folders of masks
    beside their images are left out; folders in which images lie are classes. What lies deeper, or
    beside the folders, is told. Every folder with images is in one part, or among the unused.

    Args:
        tree: the folder.
        meaning: ``splits``: folders called as splits are splits, and the outermost folders in them
            are classes; ``classes``: the outermost folders are classes; ``unlabelled``: folders
            mean nothing; ``auto``: as above.
        labelled: tells whether a part has labels, where these do not come from folders.
        masks: how folders of masks are called; None: as people call them.

    Raises: DataError if there is no image, or the test part has classes that training has not.
    """
    folders = [folder for folder in tree.folders if folder.images]
    findings = Findings(tree.root, folders)
    annotations = annotation_files(tree)
    if meaning == "unlabelled":
        return Layout(whole(folders), None, (), (), ())

    def has_labels(train: Part, test: Part) -> bool:
        if labelled is not None:
            return labelled(test)
        names, _ = _classes(train, meaning, [])
        tops = {below[0] for below in _belows(test, names) if below}
        return bool(tops & set(names)) or any(called_after(test.name, annotations))

    found, of_masks = None, list[Folder]()
    if meaning != "classes":
        folders, of_masks = without_masks(folders, findings, masks)
        found = find_splits(folders, meaning, findings, has_labels)
    if found is None and meaning == "splits" and not _in_splits(folders):
        raise DataError(
            f"{tree.root}: with {KEY}='splits' a folder must be called train, test or val, but the "
            f"folders are {some(sorted({folder.parts[0] for folder in folders if folder.parts}))}."
        )
    train, test = found or (whole(folders), None)
    unused, notes = tuple(findings.unused), tuple(findings.notes)
    if labelled is not None:
        return Layout(train, test, (), unused, notes, masks=tuple(of_masks))
    label_notes: list[str] = []
    names, labels = _classes(train, meaning, label_notes)
    train = replace(train, labels=labels)
    if test is not None:
        test = _labelled(tree, test, names, label_notes)
    return Layout(train, test, names, unused, notes, tuple(label_notes), tuple(of_masks))


def _in_splits(folders: Sequence[Folder]) -> bool:
    return all(any(map(word_of, folder.parts)) for folder in folders)


def _classes(
    part: Part, meaning: Meaning, notes: list[str]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names the classes of a part, and the class of each of its folders."""
    belows = _without_shared([place.below for place in part.places])
    tops = sorted({below[0] for below in belows if below})
    if len(tops) < 2:
        return (), None
    inner = [_without_shared([b[1:] for b in belows if b and b[0] == top]) for top in tops]
    direct = [() in each for each in inner]
    strays = sum(p.count for p, below in zip(part.places, belows, strict=True) if not below)
    if meaning == "auto" and (why := _why_none(part, belows, strays, any(direct))):
        notes.append(
            f"no labels: {why}, so folders ({some(tops)}) are not taken for classes; if the "
            f"outermost are: {KEY}='splits' (below train/ and test/) or 'classes'"
        )
        return (), None
    if strays:
        beside = "1 image lies" if strays == 1 else f"{strays:,} images lie"
        notes.append(f"{beside} beside the class folders, without a label")
    if any(len(each) > 1 for each in inner):
        notes.append("images in folders below a class folder count as of that class")
    number = {top: label for label, top in enumerate(tops)}
    return tuple(tops), tuple(number[below[0]] if below else -1 for below in belows)


def _why_none(part: Part, belows: Sequence[tuple[str, ...]], strays: int, direct: bool) -> str:
    """Why folders are not taken for classes, or nothing."""
    counts = Counter[str]()
    for place, below in zip(part.places, belows, strict=True):
        counts.update({below[0]: place.count} if below else {})
    if not direct:
        return "images lie in folders of folders"
    if 2 * strays > part.count:
        return "most images lie beside the folders"
    return "each folder holds one image" if max(counts.values()) == 1 else ""


def _labelled(tree: Tree, test: Part, names: tuple[str, ...], notes: list[str]) -> Part:
    """Labels a test part by the classes of training."""
    if not names:
        if _classes(test, "auto", [])[1]:
            notes.append(f"the class folders of {test.name}/ are not used: train/ has none")
        return test
    belows = _belows(test, names)
    tops = {below[0] for below in belows if below}
    strangers = sorted(tops - set(names))
    if not tops or strangers == sorted(tops) == sorted(tops)[:1]:
        return test
    if strangers:
        where = test.places[0].folder.parts
        folder = "/".join(where[: [word_of(part) for part in where].index(test.name) + 1])
        raise DataError(
            f"{tree.root}/{folder}: its class folders must be among those of the training part, "
            f"but {', '.join(strangers[:5])} {'is' if len(strangers) == 1 else 'are'} not. If "
            f"folders are no classes: {KEY}='unlabelled'."
        )
    number = {name: label for label, name in enumerate(names)}
    return Part(test.name, test.places, tuple(number[b[0]] if b else -1 for b in belows))


def _belows(test: Part, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The paths of a test part's folders, without folders around those of the classes."""
    belows = [place.below for place in test.places]
    known = {below[0] for below in belows if below} & set(names)
    return belows if known else _without_shared(belows)


def _without_shared(belows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Takes away the folders through which all paths lead."""
    skip = shared(belows)
    return [below[skip:] for below in belows]
