import math

import pytest
import torch
from scipy import stats

from mimkit.evaluate.base import Result
from mimkit.evaluate.image_scores import pack
from mimkit.evaluate.statistics import summarise


def result(
    value,
    seed=0,
    init="pretrained",
    metric="accuracy",
    chosen=None,
    image_scores=None,
    **protocol,
):
    return Result("finetune", metric, value, 100, seed, init, protocol, chosen or {}, image_scores)


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


def test_the_interval_of_losses_is_that_of_the_paired_t_test():
    """Of whose images nothing is known."""
    ours, base = [0.52, 0.61, 0.55, 0.58, 0.49], [0.50, 0.57, 0.54, 0.52, 0.50]
    results = [result(v, s, metric="score") for s, v in enumerate(ours)]
    results += [result(v, s, "scratch", metric="score") for s, v in reversed([*enumerate(base)])]
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


OURS = torch.arange(100) < 60
"""60 of 100 images right, alike with every seed."""


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        (torch.arange(100) < 40, "better"),
        (torch.arange(100) < 80, "worse"),
        (torch.arange(100) < 58, "not distinguishable at n=2"),
        # Equally far apart: 8 images are right for one alone, or 48 and 40 for either.
        (torch.arange(100) < 52, "better"),
        (torch.arange(100).roll(50) < 52, "not distinguishable at n=2"),
    ],
)
def test_the_verdict_on_equal_differences_is_that_of_the_images(others, verdict):
    results = [
        result(correct.float().mean().item(), seed, init, image_scores=pack(correct))
        for init, correct in (("pretrained", OURS), ("scratch", others))
        for seed in (0, 1)
    ]
    (difference,) = summarise(results)["differences"]
    assert difference["verdict"] == verdict
    assert difference["low"] < difference["mean"] < difference["high"]


def test_results_from_before_scores_were_kept_have_an_interval_at_least_as_wide():
    def difference(scores):
        results = [
            result(float(correct.float().mean()), seed, init, image_scores=scores(correct))
            for init, correct in (("pretrained", OURS), ("scratch", torch.arange(100) < 50))
            for seed in (0, 1)
        ]
        return summarise(results)["differences"][0]

    with_scores, without = difference(pack), difference(lambda _: None)
    assert without["mean"] == pytest.approx(with_scores["mean"])
    # Two independent shares: 1.96 times the root of 0.24 / 100 + 0.25 / 100.
    assert without["high"] - without["mean"] == pytest.approx(0.137, abs=0.003)
    assert with_scores["high"] - with_scores["low"] < without["high"] - without["low"]


def test_numbers_that_are_the_same_in_every_seed_are_never_called_better():
    results = [result(v, s, i, metric="score") for s in (0, 1) for i, v in INITS]
    (difference,) = summarise(results)["differences"]
    assert (difference["low"], difference["high"]) == (None, None)
    assert difference["verdict"] == "the same in every seed: no interval"


INITS = (("pretrained", 0.75), ("scratch", 0.5))
