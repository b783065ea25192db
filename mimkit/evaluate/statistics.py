"""Means over seeds, and differences between initialisations paired by seed."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

from scipy.special import stdtrit

from mimkit.evaluate.base import Result

LEVEL: Final = 0.95
BASELINES: Final = ("scratch", "random")
"""What ``"pretrained"`` is compared with: the first of these that was measured."""

Entry = dict[str, object]


def summarise(results: Sequence[Result]) -> dict[str, list[Entry]]:
    """Gathers single measurements into what a report shows.

    Results belong together if evaluator, metric and protocol agree; what a search on the
    development split chose (``Result.chosen``) may differ.

    Returns: ``"summaries"``, mean and sample standard deviation over seeds for each
        initialisation, and ``"differences"``, pre-trained minus baseline with its interval.
    """
    groups: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    protocols = {}
    for result in results:
        key = result.evaluator, result.metric, json.dumps(dict(result.protocol), sort_keys=True)
        protocols[key] = dict(result.protocol)
        groups.setdefault(key, {}).setdefault(result.init, {})[result.seed] = result.value

    summaries, differences = [], []
    for key, by_init in groups.items():
        head: Entry = {"evaluator": key[0], "metric": key[1], "protocol": protocols[key]}
        summaries += [head | {"init": init} | _spread(v) for init, v in by_init.items()]
        baseline = next((by_init[init] for init in BASELINES if init in by_init), {})
        ours = by_init.get("pretrained", {})
        if pairs := {seed: ours[seed] - baseline[seed] for seed in ours if seed in baseline}:
            differences.append(head | paired_difference(pairs.values()) | {"seeds": list(pairs)})
    return {"summaries": summaries, "differences": differences}


def paired_difference(differences: Iterable[float]) -> Entry:
    """Gives the mean of paired differences, its confidence interval and a verdict in words.

    The interval is Student's, with n - 1 degrees of freedom: at five seeds the percentile
    bootstrap covers the truth far less often than it says. A single pair has no interval.

    Args:
        differences: one per seed, higher is better.
    """
    values = list(differences)
    low, high = student_interval(values)
    return {
        "mean": statistics.fmean(values),
        "low": low,
        "high": high,
        "level": LEVEL,
        "verdict": verdict(low, high, len(values)),
    }


def student_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Gives the ends of Student's confidence interval of a mean; a single value has none."""
    num_values = len(values)
    if num_values < 2:
        return None, None
    quantile = float(stdtrit(num_values - 1, (1 + LEVEL) / 2))
    margin = quantile * _deviation(values) / math.sqrt(num_values)
    mean = statistics.fmean(values)
    return mean - margin, mean + margin


def verdict(low: float | None, high: float | None, num_seeds: int) -> str:
    """Says where the interval of a difference lies, if there is one."""
    if low is None or high is None:
        return "one seed: no interval"
    if low > 0:
        return "better"
    return "worse" if high < 0 else f"not distinguishable at n={num_seeds}"


def _spread(by_seed: dict[int, float]) -> Entry:
    values = list(by_seed.values())
    std = _deviation(values) if len(values) > 1 else None
    return {
        "mean": statistics.fmean(values),
        "std": std,
        "seeds": list(by_seed),
        "values": values,
    }


def _deviation(values: Sequence[float]) -> float:
    """The sample standard deviation, NaN of values that are not all finite."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
