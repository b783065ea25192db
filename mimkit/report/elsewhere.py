"""What the evaluations say that do not speak for a comparison: counted, so that none is picked."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mimkit.report.findings import Pair, Verdicts
from mimkit.report.verdicts import differs
from mimkit.report.wording import baseline_of, called, points, sure

_NAMED: Final = 2
"""How many findings of a kind are named, the largest first; the others are counted."""

Finding = tuple[Verdicts, Pair]


def elsewhere(main: Verdicts, others: Sequence[Verdicts]) -> Iterator[str]:
    """Counts gains over baselines, and names what the main row does not say.

    Named are gains of methods that have none in the main row, losses likewise, and methods that
    are told apart there but not, or the other way round, in the main row. Nothing is said where no
    other evaluation has an interval.

    Args:
        main: the row that speaks for the comparison.
        others: all other rows that compare methods.
    """
    gains = [(f, gain) for f in others for gain in f.gains if gain.difference.low is not None]
    if gains:
        said = {(gain.first, gain.difference.direction) for gain in main.gains}
        up, down = (_of(gains, direction) for direction in ("up", "down"))
        new_up, new_down = (
            _named([one for one in found if (one[1].first, way) not in said], _gain)
            for way, found in (("up", up), ("down", down))
        )
        yield (
            f"in other evaluations pre-training is better in {len(up)} of "
            f"{_count(gains, 'comparison')} with a baseline{new_up} and worse in "
            f"{len(down)}{new_down}"
        )
    known = {_better(pair) for pair in main.pairs if differs(pair)}
    told = [(f, p) for f in others for p in f.pairs if differs(p) and _better(p) not in known]
    if told:
        yield f"methods are told apart there in {_count(told, 'pair')}{_named(told, _pair)}"


def _count(found: Sequence[Finding], noun: str) -> str:
    return f"{len(found)} {noun}{'s' * (len(found) > 1)}"


def _of(gains: Sequence[Finding], direction: str) -> list[Finding]:
    return [one for one in gains if one[1].difference.direction == direction]


def _named(found: Sequence[Finding], worded: Callable[[Verdicts, Pair], str]) -> str:
    # By certainty, since units differ between metrics.
    first = sorted(found, key=lambda one: one[1].p_value or 0.0)[:_NAMED]
    names = [worded(*one) for one in first]
    if len(found) > _NAMED:
        names.append(f"{len(found) - _NAMED} more")
    return f" ({'; '.join(names)})" if names else ""


def _gain(found: Verdicts, gain: Pair) -> str:
    metric, difference = found.row.metric, gain.difference
    size = f"{points(difference.mean, metric)}, {sure(difference, metric)}"
    return f"{gain.first} in {called(found.row)}: {size}, over {baseline_of(gain)}"


def _better(pair: Pair) -> tuple[str, str]:
    both = pair.first, pair.second
    return both if pair.difference.mean > 0 else both[::-1]


def _pair(found: Verdicts, pair: Pair) -> str:
    better, worse = _better(pair)
    size = points(abs(pair.difference.mean), found.row.metric)
    return f"{better} over {worse} in {called(found.row)}: {size}"
