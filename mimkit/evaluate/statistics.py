"""Means over seeds, and differences between initialisations paired by seed."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mimkit import words
from mimkit.evaluate.base import Result
from mimkit.evaluate.image_scores import unpack
from mimkit.evaluate.starts import BASELINES
from mimkit.evaluate.uncertainty import (
    LEVEL,
    Estimate,
    Measured,
    estimate_difference,
    largest_error,
)

Entry = dict[str, object]


def summarise(results: Sequence[Result]) -> dict[str, list[Entry]]:
    """Gathers single measurements into what a report shows.

    Results belong together if evaluator, metric and protocol agree; what a search on the
    development split chose (``Result.chosen``) may differ.

    Returns: ``"summaries"``, mean and sample standard deviation over seeds for each
        initialisation, and ``"differences"``, pre-trained minus baseline with its interval.
    """
    groups: dict[tuple[str, str, str], dict[str, dict[int, Result]]] = {}
    protocols = {}
    for result in results:
        key = result.evaluator, result.metric, json.dumps(dict(result.protocol), sort_keys=True)
        protocols[key] = dict(result.protocol)
        groups.setdefault(key, {}).setdefault(result.init, {})[result.seed] = result

    summaries, differences = [], []
    for key, by_init in groups.items():
        head: Entry = {"evaluator": key[0], "metric": key[1], "protocol": protocols[key]}
        summaries += [head | {"init": init} | _spread(found) for init, found in by_init.items()]
        baseline = next((by_init[init] for init in BASELINES if init in by_init), {})
        ours = by_init.get("pretrained", {})
        if seeds := [seed for seed in ours if seed in baseline]:
            pairs = [(of_result(ours[seed]), of_result(baseline[seed])) for seed in seeds]
            differences.append(head | _difference(estimate_difference(pairs)) | {"seeds": seeds})
    return {"summaries": summaries, "differences": differences}


def of_result(result: Result) -> Measured:
    """Takes from a result what its error follows from."""
    return measured(result.metric, result.value, result.num_images, result.image_scores)


def of_entry(entry: Mapping[str, Any]) -> Measured:
    """Does the same for a result that was read from a file, maybe one from before scores were kept.

    Raises: DataError if its scores are damaged.
    """
    scores = entry.get("image_scores")
    return measured(entry["metric"], entry["value"], entry["num_images"], scores)


def measured(metric: str, value: float, num_images: int, image_scores: str | None) -> Measured:
    """Takes the scores of the images, or for a share of images that has none the largest error.

    Of other numbers without scores, such as losses, nothing is known of the images' part.
    """
    if image_scores is not None:
        return Measured(value, unpack(image_scores))
    if words.is_mean_of_images(metric) and 0 <= value <= 1 and num_images > 0:
        return Measured(value, most_error=largest_error(value, num_images))
    return Measured(value)


def verdict(low: float | None, high: float | None, num_seeds: int) -> str:
    """Says where the interval of a difference lies, if there is one."""
    if low is None or high is None:
        return no_interval(num_seeds)
    if low > 0:
        return "better"
    return "worse" if high < 0 else f"not distinguishable at n={num_seeds}"


def no_interval(num_seeds: int) -> str:
    """Says why there is no interval: how much another seed changes is unknown."""
    return "one seed: no interval" if num_seeds < 2 else "the same in every seed: no interval"


def _difference(found: Estimate) -> Entry:
    low, high = found.interval
    return {
        "mean": found.mean,
        "low": low,
        "high": high,
        "level": LEVEL,
        "verdict": verdict(low, high, found.num_seeds),
    }


def _spread(by_seed: Mapping[int, Result]) -> Entry:
    values = [result.value for result in by_seed.values()]
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
