"""Which groups of files, by what they are called, are the splits of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.counter import uniform
from mimkit.data.intake.folder import held_out
from mimkit.data.intake.table import Skipped
from mimkit.data.intake.words import TEST_WORDS, TRAIN_WORDS, word_in, word_of
from mimkit.data.registered import Split

_HOLD_OUT_STREAM: Final = 100


def split_groups(
    groups: Mapping[str, Sequence[str | Path]],
) -> tuple[list[str], list[str], list[str], list[Skipped]]:
    """Finds the splits by the words in names; exact ones come first.

    Args:
        groups: files, by what they are called.

    Returns: the groups to train on, those that may be the test part, what people must know of
        it, and what is not used.
    """
    words = {name: word_of(name) for name in groups}
    if not any(words.values()):
        words = {name: word_in(name) for name in groups}
    trains = [name for name in groups if words[name] in TRAIN_WORDS]
    tests = [name for word in TEST_WORDS for name in groups if words[name] == word]
    rest = [name for name in groups if words[name] is None]
    if not trains and not (tests and rest):
        note = f"no training files: {', '.join(tests)} are one pool"
        return [*groups], [], [note] if tests else [], []
    if not trains:
        return rest, tests, [f"trained on all files that are not called {', '.join(tests)}"], []
    if not rest:
        return trains, tests, [], []
    skipped = [Skipped(str(path), "not used") for name in rest for path in groups[name]]
    note = f"not used, as other files are called train: {', '.join(rest)}"
    return trains, tests, [f"{note} (a pattern in data.name chooses files)"], skipped


def rows_of_share(count: int, split: Split | None) -> NDArray[np.int64]:
    """Chooses rows where no files are those of a test part: one of ten is held out, by number.

    Args:
        count: of how many.
        split: for which; None where files are those of a test part, so that all rows are meant.

    Shape: (n,) int64, ascending.
    """
    if split is None:
        return np.arange(count)
    shuffled = np.argsort(uniform(0, _HOLD_OUT_STREAM, np.arange(count), 1)[:, 0], kind="stable")
    test = held_out(count)
    return np.sort(shuffled[:test] if split == "test" else shuffled[test:])
