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
    num_seeds, mean = len(values), statistics.fmean(values)
    entry: Entry = {"mean": mean, "low": None, "high": None, "level": LEVEL}
    if num_seeds == 1:
        return entry | {"verdict": "one seed: no interval"}
    quantile = float(stdtrit(num_seeds - 1, (1 + LEVEL) / 2))
    margin = quantile * statistics.stdev(values) / math.sqrt(num_seeds)
    verdict = f"not distinguishable at n={num_seeds}"
    if mean - margin > 0:
        verdict = "better"
    elif mean + margin < 0:
        verdict = "worse"
    return entry | {"low": mean - margin, "high": mean + margin, "verdict": verdict}


def _spread(by_seed: dict[int, float]) -> Entry:
    values = list(by_seed.values())
    std = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": statistics.fmean(values),
        "std": std,
        "seeds": list(by_seed),
        "values": values,
    }
