"""What numbers over seeds allow to say, and what they do not.

Intervals, p-values, Holm's correction and the seeds that are needed all follow from one error,
that of `mimkit.evaluate.uncertainty`: how much the mean would differ with other seeds and with
other test images of the same kind. Plain Student's intervals over seeds leave the second part
out: where two methods err on different images their coverage falls to 84 % with two seeds and to
42 % with five (tests/test_uncertainty.py simulates it), and at two seeds differences that are equal
by chance have no width at all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from mimkit.evaluate.statistics import verdict
from mimkit.evaluate.uncertainty import Estimate, Measured, estimate, estimate_difference, margin
from mimkit.report.findings import Interval, Pair, Row, Verdicts
from mimkit.report.wording import BASELINES

ALPHA: Final = 0.05
POWER: Final = 0.8
MOST_SEEDS: Final = 1000
_QUANTILES: Final = (np.arange(400) + 0.5) / 400

Pairs = Mapping[frozenset[str], Pair]


def spread(series: Mapping[int, Measured]) -> Interval:
    """Gives mean and interval over seeds.

    Numbers that are not finite are left out; without any other the mean is NaN and n is 0.

    Args:
        series: seed to number.
    """
    known = [one for one in series.values() if math.isfinite(one.value)]
    return _interval(estimate(known)) if known else Interval(math.nan, None, None, 0)


def compare(
    first: str, second: str, a: Mapping[int, Measured], b: Mapping[int, Measured]
) -> Pair | None:
    """Compares two series of numbers, paired by seed and by test image.

    Seeds that one of them lacks, or where a number is not finite, are left out.

    Args:
        first: whose numbers ``a`` are.
        second: whose numbers ``b`` are; they are subtracted.
        a: seed to number, higher is better.
        b: likewise.

    Returns: their difference, its `Pair.adjusted` None; None if no seed is left.
    """
    pairs = [
        (a[seed], b[seed])
        for seed in a
        if seed in b and math.isfinite(a[seed].value) and math.isfinite(b[seed].value)
    ]
    if not pairs:
        return None
    found = estimate_difference(pairs)
    interval = _interval(found)
    return Pair(
        first=first,
        second=second,
        difference=interval,
        p_value=found.p_value,
        adjusted=None,
        verdict=verdict(interval.low, interval.high, interval.num_seeds),
        seeds_needed=seeds_needed(found),
    )


def seeds_needed(found: Estimate) -> int | None:
    """Finds how many seeds show a true difference of this size with 80 % chance.

    Of the same test at 5 %, two-sided, on as many test images, taking mean and variances of
    ``found`` for the true ones. Few seeds know them badly, so that this is a guide to the next
    experiment, no more.

    Returns: None without a difference or an error, and for more than 1,000 seeds.
    """
    if found.p_value is None or not found.mean or _power(found, MOST_SEEDS) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # not enough; enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(found, middle) >= POWER else (middle, high)
    return high


def judge(row: Row) -> Verdicts:
    """Says what one row shows: means, differences of methods and from baselines, a ranking."""
    series = {
        (label, start): row.series(label, start)
        for label, starts in row.values.items()
        for start in starts
    }
    means = {key: spread(by_seed) for key, by_seed in series.items()}
    if row.own_task or not row.ranked:
        return Verdicts(row, means, (), (), None)
    ours = {
        label: series[label, "pretrained"]
        for label, starts in row.values.items()
        if _has_run(starts)
    }
    found = [compare(a, b, ours[a], ours[b]) for a, b in combinations(ours, 2)]
    pairs = _adjust([pair for pair in found if pair is not None])
    gains = [_gain(label, row) for label in ours]
    ordered = sorted(ours, key=lambda label: -means[label, "pretrained"].mean)
    return Verdicts(
        row=row,
        means=means,
        pairs=pairs,
        gains=tuple(gain for gain in gains if gain is not None),
        ranking=_rank(ordered, {frozenset((pair.first, pair.second)): pair for pair in pairs}),
    )


def differs(pair: Pair | None) -> bool:
    """Whether two methods can be told apart, after correction for the number of pairs."""
    return pair is not None and pair.adjusted is not None and pair.adjusted < ALPHA


def _interval(found: Estimate) -> Interval:
    error = None if found.num_seeds < 2 else math.sqrt(found.images)
    return Interval(found.mean, *found.interval, found.num_seeds, error)


def _power(found: Estimate, num_seeds: int) -> float:
    """Chance of a significant difference in the right direction; the other adds next to nothing.

    The mean over quantiles of the variance that so many seeds would show.
    """
    freedom = num_seeds - 1
    shrunk = found.num_seeds / num_seeds
    seeds = found.seeds * shrunk
    seen = seeds * chdtri(freedom, _QUANTILES) / freedom
    alone = found.images + (found.alone - found.images) * shrunk
    normal = float(ndtri(1 - ALPHA / 2))
    half = margin(seen, found.images, alone, float(stdtrit(freedom, 1 - ALPHA / 2)), normal)
    return float(ndtr((abs(found.mean) - half) / math.sqrt(seeds + found.images)).mean())


def _has_run(starts: Mapping[str, Mapping[int, float]]) -> bool:
    return any(math.isfinite(value) for value in starts.get("pretrained", {}).values())


def _gain(label: str, row: Row) -> Pair | None:
    start = next((start for start in BASELINES if start in row.values[label]), None)
    if start is None:
        return None
    ours, theirs = row.series(label, "pretrained"), row.series(label, start)
    return compare(label, f"{label} {start}", ours, theirs)


def _adjust(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Corrects p-values for the number of pairs, and the verdicts with them.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    tested = sorted(
        (pair.p_value, number) for number, pair in enumerate(pairs) if pair.p_value is not None
    )
    adjusted: dict[int, float] = {}
    so_far = 0.0
    for done, (p_value, number) in enumerate(tested):
        so_far = max(so_far, min(1.0, (len(tested) - done) * p_value))
        adjusted[number] = so_far
    return tuple(_corrected(pair, adjusted.get(number)) for number, pair in enumerate(pairs))


def _corrected(pair: Pair, adjusted: float | None) -> Pair:
    pair = replace(pair, adjusted=adjusted)
    if adjusted is None or differs(pair):
        return pair
    return replace(pair, verdict=verdict(-math.inf, math.inf, pair.difference.num_seeds))


def _rank(ordered: Sequence[str], pairs: Pairs) -> tuple[tuple[str, ...], ...] | None:
    """Groups methods from best to worst, if there is one honest way to do it.

    Args:
        ordered: labels, highest mean first.
        pairs: by the two labels of each.
    """
    cuts = [
        number
        for number in range(1, len(ordered))
        if all(_leads(a, b, pairs) for a in ordered[:number] for b in ordered[number:])
    ]
    groups = [tuple(ordered[start:end]) for start, end in pairwise([0, *cuts, len(ordered)])]
    # One that differs from a second but not from a third, which is like both, has no place.
    muddled = any(
        differs(pairs.get(frozenset(both))) for group in groups for both in combinations(group, 2)
    )
    return None if len(groups) < 2 or muddled else tuple(groups)


def _leads(first: str, second: str, pairs: Pairs) -> bool:
    pair = pairs.get(frozenset((first, second)))
    if pair is None or not differs(pair):
        return False
    return (pair.difference.mean > 0) is (pair.first == first)
