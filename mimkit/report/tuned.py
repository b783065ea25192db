"""What each method tried before its runs, in words and as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mimkit import words
from mimkit.report.findings import Tried, Tuning
from mimkit.report.wording import CALLED, listed, written

_TENTHS = 10


@dataclass(frozen=True)
class Line:
    """One trial.

    Args:
        method: whose it is.
        cells: in the order of `columns`.
        chosen: its setting is that of the runs.
    """

    method: str
    cells: tuple[str, ...]
    chosen: bool


def columns(tuning: Tuning) -> tuple[str, ...]:
    """What is said of each trial; an option of maskers is called as in a recipe."""
    return ("trial", "learning rate", *_options(tuning), _measure(tuning), "")


def lines(tuning: Tuning) -> Iterator[Line]:
    """All trials, method by method."""
    for tried in tuning.tried:
        score = words.number(tried.score, tuning.metric)
        yield Line(
            tried.method,
            (
                str(tried.number),
                f"{tried.lr:.3g} (×{words.NARROW}{tried.factor:g})",
                *(_option(tried, name) for name in _options(tuning)),
                "diverged" if tried.score is None else score,
                "chosen" if tried.chosen else "",
            ),
            tried.chosen,
        )


def explained(tuning: Tuning) -> tuple[str, ...]:
    """Says what the trials were given and what they were chosen by, a sentence each."""
    left = _TENTHS - tuning.num_trials
    said = [
        f"Before its runs each method had {tuning.num_trials} trials with a tenth of a run's "
        f"budget each, so that the runs had {left} tenths of it; the first trial is the recipe as "
        "it is.",
        f"The runs have the setting with the best {_measure(tuning)} of {tuning.num_images:,} "
        "training images whose labels were held back; no test image was asked.",
    ]
    fixed = _without_options(tuning)
    if fixed:
        maskers = "the masker declares" if len(fixed) == 1 else "the maskers declare"
        said.append(
            f"Of {listed(fixed)} the learning rate alone was tried, as {maskers} nothing that is "
            "worth a search."
        )
    at_end = [one.method for one in tuning.tried if one.chosen and _is_at_end(one, tuning)]
    if at_end:
        said.append(
            f"Of {listed(at_end)} the largest or smallest learning rate that was tried is the "
            "best: a better one may lie beyond it."
        )
    return tuple(said)


def _measure(tuning: Tuning) -> str:
    evaluator = CALLED.get(tuning.evaluator, tuning.evaluator.replace("_", " "))
    name = f"{evaluator} {written(tuning.metric.rpartition('/')[2])}"
    fraction = tuning.protocol.get("label_fraction")
    if not isinstance(fraction, int | float):
        return name
    return f"{name} at {words.share(fraction)} of the labels"


def _options(tuning: Tuning) -> list[str]:
    return list(dict.fromkeys(name for tried in tuning.tried for name in tried.options))


def _option(tried: Tried, name: str) -> str:
    return f"{tried.options[name]:g}" if name in tried.options else words.MISSING


def _without_options(tuning: Tuning) -> Sequence[str]:
    having = {tried.method for tried in tuning.tried if tried.options}
    return list(dict.fromkeys(t.method for t in tuning.tried if t.method not in having))


def _is_at_end(best: Tried, tuning: Tuning) -> bool:
    factors = [tried.factor for tried in tuning.tried if tried.method == best.method]
    return best.factor in (min(factors), max(factors))
