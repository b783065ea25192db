"""Which folders are the splits of a data set, and which hold masks of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mimkit.data.intake.places import KEY, Findings, Meaning, Part, Place, shared, some
from mimkit.data.intake.walk import Folder
from mimkit.data.intake.words import TEST_WORDS, TRAIN_WORDS, masks_among, word_of


def without_masks(
    folders: list[Folder], findings: Findings, called: str | None = None
) -> tuple[list[Folder], list[Folder]]:
    """Leaves out folders of masks that lie beside the folders of their images.

    Args:
        folders: with images.
        findings: is told what is decided.
        called: how the folders of masks are called; None: by the words that people use for them.

    Returns: the folders of images, and those of masks that are called so.
    """
    beside: dict[tuple[str, ...], set[str]] = {}
    for folder in folders:
        for depth, part in enumerate(folder.parts):
            beside.setdefault(folder.parts[:depth], set()).add(part)
    masks = {
        (*above, each)
        for above, names in beside.items()
        for each in masks_among(frozenset(names)) | (names & {called})
    }
    left: list[Folder] = []
    kept: list[Folder] = []
    for folder in folders:
        above = (folder.parts[:depth] for depth in range(1, len(folder.parts) + 1))
        (left if any(path in masks for path in above) else kept).append(folder)
    if left:
        findings.leave(left, f"they look like masks of others; {KEY}='unlabelled' takes all")
        findings.notes.append(
            f"folders called {some(sorted({path[-1] for path in masks}))} are taken for masks of "
            f"the images beside them; if they are classes: {KEY}='classes'"
        )
    return kept, [each for each in left if called is None or called in each.parts]


def find_splits(
    folders: Sequence[Folder],
    meaning: Meaning,
    findings: Findings,
    has_labels: Callable[[Part, Part], bool],
) -> tuple[Part, Part | None] | None:
    """Finds the folders of the splits, by the first word for one in each path.

    Args:
        folders: with images.
        meaning: ``splits`` where folders called so are splits whatever lies beside them.
        findings: is told what is decided.
        has_labels: tells of a training and a test part whether the latter has labels: of several
            the first that has is taken.

    Returns: the training part and the test part, if there is one; None if there are no splits.
    """
    by_word: dict[str, list[Place]] = {}
    rest: list[Place] = []
    skip = shared([folder.parts for folder in folders])
    for folder in folders:
        parts = folder.parts[skip:]
        words = list(map(word_of, parts))
        at = next((k for k, word in enumerate(words) if word), None)
        if at is None:
            rest.append(Place(folder, parts))
        else:
            place = Place(folder, parts[:at] + parts[at + 1 :])
            by_word.setdefault(words[at] or "", []).append(place)
    trains = [place for word in TRAIN_WORDS for place in by_word.get(word, [])]
    tests = [Part(word, tuple(by_word[word])) for word in TEST_WORDS if word in by_word]
    if not trains and rest and tests and (meaning == "splits" or _all_deep(rest, tests)):
        trains, rest = rest, []
    doubt = _doubt(trains, tests, rest, meaning)
    if doubt is not None:
        findings.notes += [doubt] if doubt else []
        return None
    train = Part("train", tuple(trains))
    if rest:
        left = [place.folder for place in rest]
        names = findings.leave(left, f"they lie in no split; {KEY}='classes' makes them classes")
        findings.notes.append(
            f"not used, as they lie beside the folders of the splits: {some(names)}; if all these "
            f"are classes: {KEY}='classes'"
        )
    if not tests:
        return train, None
    # ImageNet's test/ has no classes, its val/ has.
    test = next((each for each in tests if has_labels(train, each)), tests[0])
    others = [each for each in tests if each is not test]
    for other in others:
        left = [place.folder for place in other.places]
        findings.leave(left, f"the test split is {test.name}/")
    if others:
        names = [f"{other.name}/" for other in others]
        findings.notes.append(f"the test split is {test.name}/; not used: {some(names)}")
    return train, test


def _doubt(
    trains: Sequence[Place], tests: Sequence[Part], rest: Sequence[Place], meaning: Meaning
) -> str | None:
    """Why folders are no splits though some are called so; "" if none is; None if they are."""
    names = some([test.name for test in tests])
    if not trains and not tests:
        return ""
    if not trains and rest:
        return (
            f"folders called {names} are taken for classes, as no training folder stands beside "
            f"them; if they are the test part: {KEY}='splits'"
        )
    if not trains:
        return f"no training folder: {names} are one pool"
    if not tests and rest and meaning == "auto" and not _only_train_is_deep(trains, rest):
        return (
            "a folder called train is taken for a class, as others stand beside it and none is "
            f"called test or val; if it is the training part: {KEY}='splits'"
        )
    return None


def _all_deep(rest: Sequence[Place], tests: Sequence[Part]) -> bool:
    """Whether images of both lie in folders of their own, as classes do."""
    inner = [place for part in tests for place in part.places if place.below]
    return bool(inner) and all(len(place.below) > 1 for place in rest)


def _only_train_is_deep(trains: Sequence[Place], rest: Sequence[Place]) -> bool:
    inner = {place.below[0] for place in trains if place.below}
    return len(inner) > 1 and all(len(place.below) <= 1 for place in rest)
