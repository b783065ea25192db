import math

import pytest
import torch
from scipy import stats

from mimkit.evaluate.base import Result
from mimkit.evaluate.statistics import paired_difference, summarise


def result(value, seed=0, init="pretrained", evaluator="finetune", chosen=None, **protocol):
    return Result(evaluator, "accuracy", value, 100, seed, init, protocol, chosen or {})


def test_means_are_taken_over_the_seeds_of_one_protocol_and_init():
    results = [result(v, s, label_fraction=f) for f in (0.1, 1.0) for s, v in enumerate((0.5, 0.7))]
    results += [result(0.2, label_fraction=0.1, init="scratch")]
    summaries = summarise(results)["summaries"]
    assert [(s["protocol"], s["init"]) for s in summaries] == [
        ({"label_fraction": 0.1}, "pretrained"),
        ({"label_fraction": 0.1}, "scratch"),
        ({"label_fraction": 1.0}, "pretrained"),
    ]
    assert summaries[0]["mean"] == pytest.approx(0.6)
    assert summaries[0]["std"] == pytest.approx(0.2 / math.sqrt(2))  # of a sample
    assert summaries[0]["values"] == [0.5, 0.7]
    assert summaries[0]["seeds"] == [0, 1]


def test_a_single_seed_has_no_deviation_and_no_interval():
    summary = summarise([result(0.5), result(0.4, init="scratch")])
    assert summary["summaries"][0]["std"] is None
    (difference,) = summary["differences"]
    assert difference["mean"] == pytest.approx(0.1)
    assert (difference["low"], difference["high"]) == (None, None)
    assert difference["verdict"] == "one seed: no interval"


def test_what_a_search_chose_does_not_keep_results_apart():
    results = [
        result(0.5, 0, chosen={"lr": 0.1}),
        result(0.4, 0, init="scratch", chosen={"lr": 0.03}),
        result(0.6, 1, chosen={"lr": 0.03}),
        result(0.4, 1, init="scratch", chosen={"lr": 0.03}),
    ]
    summary = summarise(results)
    assert len(summary["summaries"]) == 2
    assert summary["differences"][0]["mean"] == pytest.approx(0.15)


def test_the_interval_is_that_of_the_paired_t_test():
    ours, base = [0.52, 0.61, 0.55, 0.58, 0.49], [0.50, 0.57, 0.54, 0.52, 0.50]
    results = [result(v, s) for s, v in enumerate(ours)]
    results += [result(v, s, "scratch") for s, v in reversed(list(enumerate(base)))]
    (difference,) = summarise(results)["differences"]
    expected = stats.ttest_rel(ours, base).confidence_interval(0.95)
    assert difference["low"] == pytest.approx(expected.low)
    assert difference["high"] == pytest.approx(expected.high)
    assert difference["level"] == 0.95
    assert difference["seeds"] == [0, 1, 2, 3, 4]


def test_only_seeds_that_both_sides_have_are_paired():
    results = [result(0.9, 0), result(0.5, 1), result(0.3, 1, "scratch"), result(0.1, 2, "scratch")]
    (difference,) = summarise(results)["differences"]
    assert difference["seeds"] == [1]
    assert difference["mean"] == pytest.approx(0.2)


def test_frozen_features_are_compared_with_random_ones():
    results = [result(0.5), result(0.3, init="random"), result(0.4, init="pixels")]
    (difference,) = summarise(results)["differences"]
    assert difference["mean"] == pytest.approx(0.2)


def test_without_a_baseline_there_is_no_difference():
    assert summarise([result(0.5)])["differences"] == []


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.04, 0.05, 0.06], "better"),
        ([-0.04, -0.05, -0.06], "worse"),
        ([0.04, -0.05, 0.06], "not distinguishable at n=3"),
        ([0.0, 0.0], "not distinguishable at n=2"),
        ([0.1, 0.1], "better"),
    ],
)
def test_the_verdict_says_where_the_interval_lies(differences, verdict):
    assert paired_difference(differences)["verdict"] == verdict


def test_at_five_seeds_the_interval_covers_what_it_says():
    generator = torch.Generator().manual_seed(0)
    true_gain, comparisons, seeds = 0.01, 1000, 5
    # A seed makes both sides better or worse together, by far more than the gain.
    luck = 0.05 * torch.randn(comparisons, seeds, generator=generator)
    noise = 0.01 * torch.randn(2, comparisons, seeds, generator=generator)
    ours, base = 0.6 + true_gain + luck + noise[0], 0.6 + luck + noise[1]
    results = [
        result(float(values[number, seed]), seed, init, number=number)
        for init, values in (("pretrained", ours), ("scratch", base))
        for number in range(comparisons)
        for seed in range(seeds)
    ]
    differences = summarise(results)["differences"]
    assert len(differences) == comparisons
    covered = sum(d["low"] <= true_gain <= d["high"] for d in differences)
    assert 930 <= covered <= 970
