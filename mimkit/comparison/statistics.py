"""What numbers over seeds allow to say, and what they do not.

All intervals are Student's, at 95 %. Of four methods that were tried on simulated comparisons of
five seeds (differences of accuracies on 2,000 test images; seeds' effects normal or skewed by up to
2 in one method or both; 15 models, 20,000 comparisons each, 4,000 for the bootstraps with 2,000
resamples) two cover the truth in 93 to 97 %, and of these it is the narrower:

    Student's t           94.8 to 95.2 %
    bootstrap-t           93.5 to 95.2 %, about 30 % wider
    BCa bootstrap         82.3 to 84.5 %
    percentile bootstrap  82.4 to 84.6 %

Its limit: were the effects of seeds skewed by 1 and test images without noise, it would cover 93 %
of single means; skewed by 2, 88 %. Differences that are the same in every seed have an interval of
no width and p = 0. That is the limit of the t test and is taken as it is: with two seeds and 100
test images, where it happens most often by chance (in 4 % of comparisons), coverage is 94.4 %.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Final

from scipy.special import ndtri, stdtr, stdtrit
from scipy.stats import nct

from mimkit.comparison.records import Interval, Pair, Row, Verdicts
from mimkit.evaluate.statistics import student_interval, verdict
from mimkit.report.findings import BASELINES

ALPHA: Final = 0.05
POWER: Final = 0.8
MOST_SEEDS: Final = 1000
_ROUNDING: Final = 1e-6  # of numbers that were float32 once

Pairs = Mapping[frozenset[str], Pair]


def spread(values: Mapping[int, float]) -> Interval:
    """Gives mean and interval over seeds.

    Numbers that are not finite are left out; without any other the mean is NaN and n is 0.

    Args:
        values: seed to number.
    """
    return _interval([value for value in values.values() if math.isfinite(value)])


def compare(first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]) -> Pair | None:
    """Compares two series of numbers, paired by seed.

    Seeds that one of them lacks, or where a number is not finite, are left out.

    Args:
        first: whose numbers ``a`` are.
        second: whose numbers ``b`` are; they are subtracted.
        a: seed to number, higher is better.
        b: likewise.

    Returns: their difference, its `Pair.adjusted` None; None if no seed is left.
    """
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    differences = [value for value in differences if math.isfinite(value)]
    if not differences:
        return None
    interval = _interval(differences)
    return Pair(
        first=first,
        second=second,
        difference=interval,
        p_value=_p_value(differences),
        adjusted=None,
        verdict=verdict(interval.low, interval.high, interval.num_seeds),
        seeds_needed=seeds_needed(differences),
    )


def seeds_needed(differences: Iterable[float]) -> int | None:
    """Finds how many seeds show a true difference of this size with 80 % chance.

    Of a paired t test at 5 %, two-sided, taking mean and deviation of ``differences`` for the true
    ones. Few seeds know both badly, so that this is a guide to the next experiment, no more.

    Returns: None without a difference or without a spread, and for more than 1,000 seeds.
    """
    values = [value for value in differences if math.isfinite(value)]
    if len(values) < 2:
        return None
    mean, deviation = abs(statistics.fmean(values)), statistics.stdev(values)
    if deviation <= _ROUNDING * mean or not mean:
        return None
    effect = mean / deviation
    # What a known deviation would need: an unknown one never needs fewer, and hardly more.
    normal = (ndtri(1 - ALPHA / 2) + ndtri(POWER)) / effect
    first = MOST_SEEDS + 1 if normal**2 > MOST_SEEDS else max(2, math.ceil(normal**2))
    return next((n for n in range(first, MOST_SEEDS + 1) if _power(effect, n) >= POWER), None)


def judge(row: Row) -> Verdicts:
    """Says what one row shows: means, differences of methods and from baselines, a ranking."""
    means = {
        (label, start): spread(by_seed)
        for label, starts in row.values.items()
        for start, by_seed in starts.items()
    }
    if row.own_task:
        return Verdicts(row, means, (), (), None)
    ours = {label: starts["pretrained"] for label, starts in row.values.items() if _has_run(starts)}
    found = [compare(a, b, ours[a], ours[b]) for a, b in combinations(ours, 2)]
    pairs = _adjust([pair for pair in found if pair is not None])
    gains = [_gain(label, row.values[label]) for label in ours]
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


def _interval(values: Sequence[float]) -> Interval:
    if not values:
        return Interval(math.nan, None, None, 0)
    low, high = student_interval(values)
    return Interval(statistics.fmean(values), low, high, len(values))


def _p_value(differences: Sequence[float]) -> float | None:
    """Two-sided, of a t test that the differences are zero in the mean."""
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if not deviation:
        return 0.0 if mean else 1.0
    t = mean / (deviation / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def _power(effect: float, num_seeds: int) -> float:
    """Chance of a significant difference in the right direction; the other adds next to nothing."""
    freedom = num_seeds - 1
    critical = stdtrit(freedom, 1 - ALPHA / 2)
    return float(nct.sf(critical, freedom, effect * math.sqrt(num_seeds)))


def _has_run(starts: Mapping[str, Mapping[int, float]]) -> bool:
    return any(math.isfinite(value) for value in starts.get("pretrained", {}).values())


def _gain(label: str, starts: Mapping[str, Mapping[int, float]]) -> Pair | None:
    start = next((start for start in BASELINES if start in starts), None)
    if start is None:
        return None
    return compare(label, f"{label} {start}", starts["pretrained"], starts[start])


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
