"""What folders mean: which are splits, which are classes, which hold masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mimkit.data.intake.table import Skipped
from mimkit.data.intake.walk import Folder, Tree
from mimkit.data.intake.words import TEST_WORDS, TRAIN_WORDS, masks_among, word_of
from mimkit.errors import DataError

Meaning = Literal["auto", "splits", "classes", "unlabelled"]
_SHOWN: Final = 4
_KEY: Final = "data.layout"


@dataclass(frozen=True)
class Place:
    """A folder of a split.

    Args:
        folder: what lies in it.
        below: its path without the name of the split, by which its images are ordered.
    """

    folder: Folder
    below: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many images lie directly in it."""
        return len(self.folder.images)


@dataclass(frozen=True)
class Part:
    """The folders of one split.

    Args:
        name: of the split on disk; "" where there is none.
        places: the folders.
        labels: the class of each, -1 for none; None if none has one.
    """

    name: str
    places: tuple[Place, ...]
    labels: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(place.count for place in self.places)


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
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    unused: tuple[Skipped, ...]
    notes: tuple[str, ...]
    label_notes: tuple[str, ...] = ()


def arrange(tree: Tree, meaning: Meaning, labelled: Callable[[Part], bool] | None = None) -> Layout:
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

    Raises: DataError if there is no image, or the test part has classes that training has not.
    """
    folders = [folder for folder in tree.folders if folder.images]
    unused: list[Skipped] = []
    notes: list[str] = []

    def leave(left: Sequence[Folder], reason: str) -> None:
        for top, count in _tops(left).items():
            unused.append(Skipped(f"{tree.root}/{top}", f"{count:,} images not used: {reason}"))

    if meaning == "unlabelled":
        return Layout(_whole(folders), None, (), (), ())
    if meaning != "classes":
        folders = _without_masks(folders, leave, notes)
    label_notes: list[str] = []

    def has_labels(part: Part) -> bool:
        return bool(labelled(part) if labelled else _classes(part, "splits", [])[1])

    train: Part | None = None
    test: Part | None = None
    if meaning != "classes":
        train, test = _split(folders, meaning, leave, notes, has_labels)
    if train is None:
        if meaning == "splits" and not _in_splits(folders):
            raise DataError(
                f"{tree.root}: with {_KEY} = 'splits' a folder must be called train, test or val, "
                f"but the folders are {_some(list(_tops(folders)))}."
            )
        train, test = _whole(folders), None
    if labelled is not None:
        return Layout(train, test, (), tuple(unused), tuple(notes))
    names, labels = _classes(train, meaning, label_notes)
    train = Part(train.name, train.places, labels)
    if test is not None:
        test = _labelled(tree, test, names, label_notes)
    return Layout(train, test, names, tuple(unused), tuple(notes), tuple(label_notes))


Leave = Callable[[Sequence[Folder], str], None]


def _whole(folders: Sequence[Folder]) -> Part:
    skip = _shared([folder.parts for folder in folders])
    return Part("", tuple(Place(folder, folder.parts[skip:]) for folder in folders))


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """Through how many folders all paths lead."""
    depth = 0
    while all(len(path) > depth for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    return depth


def _tops(folders: Sequence[Folder]) -> dict[str, int]:
    """Folders and how many images lie below each; none of them lies below another."""
    tops: dict[str, int] = {}
    for folder in sorted(folders, key=lambda folder: folder.parts):
        last = next(reversed(tops), None)
        top = last if last is not None and folder.name.startswith(f"{last}/") else folder.name
        tops[top] = tops.get(top, 0) + len(folder.images)
    return tops


def _without_masks(folders: list[Folder], leave: Leave, notes: list[str]) -> list[Folder]:
    beside: dict[tuple[str, ...], set[str]] = {}
    for folder in folders:
        for depth, part in enumerate(folder.parts):
            beside.setdefault(folder.parts[:depth], set()).add(part)
    masks = {(*above, each) for above, n in beside.items() for each in masks_among(frozenset(n))}
    left = [f for f in folders if any(f.parts[:k] in masks for k in range(1, len(f.parts) + 1))]
    if not left:
        return folders
    kinds = _some(sorted({path[-1] for path in masks}))
    leave(left, f"they look like masks of other images; {_KEY} = 'unlabelled' takes all")
    notes.append(
        f"folders called {kinds} are taken for masks of the images beside them, and not used; if "
        f"they are classes: {_KEY}='classes'"
    )
    return [folder for folder in folders if folder not in left]


def _split(
    folders: list[Folder],
    meaning: Meaning,
    leave: Leave,
    notes: list[str],
    has_labels: Callable[[Part], bool],
) -> tuple[Part | None, Part | None]:
    """Finds the folders of the splits by the first word for one in each path."""
    by_word: dict[str, list[Place]] = {}
    rest: list[Folder] = []
    skip = _shared([folder.parts for folder in folders])
    for folder in folders:
        parts = folder.parts[skip:]
        at = next((k for k, part in enumerate(parts) if word_of(part)), None)
        if at is None:
            rest.append(folder)
        else:
            place = Place(folder, parts[:at] + parts[at + 1 :])
            by_word.setdefault(parts[at].lower(), []).append(place)
    trains = [place for word in TRAIN_WORDS for place in by_word.get(word, [])]
    tests = [Part(word, tuple(by_word[word])) for word in TEST_WORDS if word in by_word]
    if not trains and not tests:
        return None, None
    if not trains and rest and (meaning == "splits" or _deeper(rest, tests)):
        trains, rest = [Place(folder, folder.parts[skip:]) for folder in rest], []
    elif not trains and rest:
        names = _some([test.name for test in tests])
        notes.append(
            f"folders called {names} are taken for classes, as no training folder stands beside "
            f"them; if they are the test part: {_KEY}='splits'"
        )
        return None, None
    elif not trains:
        notes.append(f"no training folder: {_some([t.name for t in tests])} are one pool")
        return None, None
    if not tests and rest and meaning == "auto" and not _only_train_is_deep(trains, rest):
        notes.append(
            "a folder called train is taken for a class, as others stand beside it and none is "
            f"called test or val; if it is the training part: {_KEY}='splits'"
        )
        return None, None
    train = Part("train", tuple(trains))
    if rest:
        names = _some(list(_tops(rest)))
        leave(rest, f"they lie in no split; {_KEY}='classes' makes each outermost folder a class")
        notes.append(
            f"not used, as they lie beside the folders of the splits: {names}; if all these are "
            f"classes: {_KEY}='classes'"
        )
    if not tests:
        return train, None
    # ImageNet's test/ has no classes, its val/ has.
    test = next((each for each in tests if has_labels(each)), tests[0])
    others = [each for each in tests if each is not test]
    for other in others:
        leave([place.folder for place in other.places], f"the test split is {test.name}/")
    if others:
        names = _some([other.name for other in others])
        notes.append(f"the test split is {test.name}/; not used: {names}/")
    return train, test


def _in_splits(folders: Sequence[Folder]) -> bool:
    return all(any(map(word_of, folder.parts)) for folder in folders)


def _deeper(rest: Sequence[Folder], tests: Sequence[Part]) -> bool:
    """Whether images of both lie in folders of their own, as classes do."""
    below_tests = [place for part in tests for place in part.places if place.below]
    return bool(below_tests) and all(len(folder.parts) > 1 for folder in rest)


def _only_train_is_deep(trains: Sequence[Place], rest: Sequence[Folder]) -> bool:
    inner = {place.below[0] for place in trains if place.below}
    return len(inner) > 1 and all(len(folder.parts) <= 1 for folder in rest)


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
    if meaning == "auto":
        counts = dict.fromkeys(tops, 0)
        for place, below in zip(part.places, belows, strict=True):
            if below:
                counts[below[0]] += place.count
        if not any(direct):
            why = "images lie in folders of folders"
        elif 2 * strays > part.count:
            why = "most images lie beside the folders"
        elif max(counts.values()) == 1:
            why = "each folder holds one image"
        else:
            why = ""
        if why:
            notes.append(
                f"no labels: {why}, so folders ({_some(tops)}) are not taken for classes; if the "
                f"outermost are: {_KEY}='splits' (below train/ and test/) or 'classes'"
            )
            return (), None
    if strays:
        s, have = (
            (
                "",
                "lies",
            )
            if strays == 1
            else ("s", "lie")
        )
        notes.append(f"{strays:,} image{s} {have} beside the class folders, without a label")
    if any(len(each) > 1 for each in inner):
        notes.append("images in folders below a class folder count as of that class")
    number = {top: label for label, top in enumerate(tops)}
    return tuple(tops), tuple(number[below[0]] if below else -1 for below in belows)


def _labelled(tree: Tree, test: Part, names: tuple[str, ...], notes: list[str]) -> Part:
    """Labels a test part by the classes of training."""
    own, _ = _classes(test, "splits", [])
    belows = [place.below for place in test.places]
    if own or not {b[0] for b in belows if b} & set(names):
        belows = _without_shared(belows)
    if not names:
        if _classes(test, "auto", [])[1]:
            notes.append(f"the class folders of {test.name}/ are not used: train/ has none")
        return test
    tops = {below[0] for below in belows if below}
    strangers = sorted(tops - set(names))
    if not tops or (strangers and not own and len(tops) == len(strangers)):
        return test
    if strangers:
        where = test.places[0].folder.parts
        folder = "/".join(where[: [part.lower() for part in where].index(test.name) + 1])
        raise DataError(
            f"{tree.root}/{folder}: its class folders must be among those of the training part, "
            f"but {', '.join(strangers[:5])} {'is' if len(strangers) == 1 else 'are'} not. If "
            f"folders are no classes: {_KEY}='unlabelled'."
        )
    number = {name: label for label, name in enumerate(names)}
    return Part(test.name, test.places, tuple(number[b[0]] if b else -1 for b in belows))


def _without_shared(belows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Takes away the folders through which all paths lead."""
    skip = _shared(belows)
    return [below[skip:] for below in belows]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
