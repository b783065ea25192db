import math

import numpy as np
import pytest
from scipy import stats

from mimkit.evaluate.uncertainty import Estimate, Measured, estimate
from mimkit.report.findings import Row
from mimkit.report.verdicts import compare, judge, seeds_needed, spread

SEEDS, TEST_IMAGES = 5, 200


def by_seed(values):
    """Numbers of which nothing is known but themselves."""
    return {seed: Measured(float(value)) for seed, value in enumerate(values)}


def seeds(values):
    return {seed: Measured(value) for seed, value in values.items()}


def row(start="pretrained", own_task=False, **methods):
    values = {
        label: {start: dict(enumerate(map(float, numbers)))} for label, numbers in methods.items()
    }
    return Row("finetune", "score", {}, values, own_task)


def judged(**methods):
    """The row of methods whose images' scores are known, (seeds, images) bool each."""
    measured = {
        label: {
            "pretrained": {
                seed: Measured(float(one.mean()), one.astype(float))
                for seed, one in enumerate(correct)
            }
        }
        for label, correct in methods.items()
    }
    values = {
        label: {"pretrained": {seed: one.value for seed, one in starts["pretrained"].items()}}
        for label, starts in measured.items()
    }
    return Row("finetune", "accuracy", {}, values, measured=measured)


@pytest.mark.parametrize("seeds", [2, 5])
def test_equal_methods_are_hardly_ever_ranked_however_many_pairs_there_are(seeds):
    generator = np.random.default_rng(0)
    ranked = 0
    for _ in range(200):
        hard = generator.standard_normal(TEST_IMAGES)
        correct = {
            label: hard
            + generator.standard_normal(TEST_IMAGES)
            + generator.standard_normal((seeds, TEST_IMAGES))
            < 0.5
            for label in "abcd"
        }
        ranked += judge(judged(**correct)).ranking is not None
    assert ranked <= 200 * 0.05


def test_methods_that_judge_many_images_otherwise_are_ranked():
    generator = np.random.default_rng(0)
    hard = generator.standard_normal((1, 2000))
    correct = {
        label: hard + 0.5 * generator.standard_normal((3, 2000)) < bound
        for label, bound in (("good", 0.8), ("bad", 0.2))
    }
    verdicts = judge(judged(**correct))
    assert verdicts.ranking == (("good",), ("bad",))
    assert verdicts.pairs[0].difference.image_error > 0


def test_a_difference_is_the_paired_t_test():
    a, b = [0.52, 0.61, 0.55, 0.58, 0.49], [0.50, 0.57, 0.54, 0.52, 0.50]
    pair = compare("a", "b", by_seed(a), by_seed(b))
    expected = stats.ttest_rel(a, b)
    assert pair.p_value == pytest.approx(expected.pvalue)
    assert pair.difference.low == pytest.approx(expected.confidence_interval().low)
    assert pair.difference.high == pytest.approx(expected.confidence_interval().high)
    assert pair.difference.num_seeds == 5


def test_only_seeds_that_both_have_are_paired():
    pair = compare("a", "b", seeds({0: 0.9, 1: 0.5, 2: 0.6}), seeds({2: 0.4, 1: 0.3, 3: 0.0}))
    assert pair.difference.num_seeds == 2
    assert pair.difference.mean == pytest.approx(0.2)
    assert compare("a", "b", seeds({0: 0.9}), seeds({1: 0.9})) is None


def test_one_seed_has_no_interval_and_no_p_value():
    pair = compare("a", "b", seeds({0: 0.5}), seeds({0: 0.4}))
    assert pair.difference.mean == pytest.approx(0.1)
    assert (pair.difference.low, pair.difference.high) == (None, None)
    assert (pair.p_value, pair.seeds_needed) == (None, None)
    assert pair.verdict == "one seed: no interval"


def test_two_seeds_are_worth_little():
    pair = compare("a", "b", seeds({0: 0.50, 1: 0.54}), seeds({0: 0.40, 1: 0.40}))
    assert pair.difference.low < 0 < pair.difference.high
    assert pair.verdict == "not distinguishable at n=2"


def test_a_number_that_is_none_counts_as_not_measured():
    found = spread(seeds({0: 0.5, 1: math.nan, 2: 0.7, 3: math.inf}))
    assert (found.mean, found.num_seeds) == (pytest.approx(0.6), 2)
    nothing = spread(seeds({0: math.nan}))
    assert math.isnan(nothing.mean)
    assert (nothing.low, nothing.num_seeds) == (None, 0)
    pair = compare("a", "b", seeds({0: 0.5, 1: math.nan, 2: 0.7}), seeds({0: 0.4, 1: 0.4, 2: 0.5}))
    assert pair.difference.num_seeds == 2
    assert compare("a", "b", seeds({0: math.nan}), seeds({0: 0.4})) is None
    verdicts = judge(row(a=[math.nan, math.nan], b=[0.4, 0.5]))
    assert verdicts.pairs == ()
    assert verdicts.ranking is None


def test_the_same_difference_in_every_seed_is_no_proof():
    pair = compare("a", "b", seeds({0: 0.5, 1: 0.75}), seeds({0: 0.25, 1: 0.5}))
    assert (pair.difference.low, pair.difference.high) == (None, None)
    assert pair.verdict == "the same in every seed: no interval"
    assert (pair.p_value, pair.seeds_needed) == (None, None)
    verdicts = judge(row(a=[0.5, 0.75], b=[0.25, 0.5]))
    assert verdicts.pairs[0].adjusted is None
    assert verdicts.ranking is None


def test_of_accuracies_its_interval_is_that_of_the_images():
    correct = np.arange(100)[None] < np.array([[60], [60]])
    others = np.arange(100)[None] < np.array([[58], [58]])
    pair = judge(judged(a=correct, b=others)).pairs[0]
    assert pair.difference.low < 0 < pair.difference.high
    assert pair.verdict == "not distinguishable at n=2"
    assert pair.p_value > 0.05
    # McNemar: two images that one of them alone gets right prove nothing.
    assert pair.seeds_needed is None


def test_rounding_is_no_spread():
    pair = compare("a", "b", by_seed([0.3, 0.2, 0.4]), by_seed([0.2, 0.1, 0.3]))
    assert pair.difference.mean == pytest.approx(0.1)
    assert (pair.difference.low, pair.seeds_needed) == (None, None)


def needed(differences):
    return seeds_needed(estimate([Measured(float(value)) for value in differences]))


def test_no_number_of_seeds_shows_what_the_images_cannot():
    """Of 400 images 20 more: the choice of images alone has a standard error of 15."""
    few = Estimate(0.05, 3, 1e-4, (15 / 400) ** 2, (15 / 400) ** 2)
    assert seeds_needed(few) is None
    many = Estimate(0.05, 3, 1e-4, (15 / 400) ** 2 / 100, (15 / 400) ** 2 / 100)
    assert 2 <= seeds_needed(many) < 10


@pytest.mark.parametrize(
    ("effect", "expected"), [(0.5, 34), (0.8, 15), (1.0, 10), (0.2, 199), (1.5, 6)]
)
def test_seeds_needed_are_those_of_the_tables(effect, expected):
    """Paired t test, 80 % power at 5 % two-sided: 34 pairs for half a deviation, and so on."""
    deviation = stats.norm.ppf(np.linspace(0.05, 0.95, 9))
    deviation /= deviation.std(ddof=1)
    assert needed(effect + deviation) == expected
    assert needed(-effect - deviation) == expected


def test_that_many_seeds_do_show_it_in_four_of_five_cases():
    generator = np.random.default_rng(0)
    num_seeds = needed([-0.2, 0.8, 1.8])  # mean 0.8, deviation 1
    drawn = 0.8 + generator.standard_normal((4000, num_seeds))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.02
    )


def test_a_gap_that_a_thousand_seeds_would_not_show_has_no_number():
    assert needed([1.001, -1.0, 0.001]) is None


def test_p_values_of_all_pairs_are_corrected_after_holm():
    verdicts = judge(
        row(
            a=[0.623, 0.625, 0.636, 0.633],
            b=[0.602, 0.604, 0.588, 0.596],
            c=[0.603, 0.608, 0.592, 0.592],
        )
    )
    a_b, a_c, b_c = verdicts.pairs
    assert [(pair.first, pair.second) for pair in verdicts.pairs] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    smaller, larger = sorted([a_b, a_c], key=lambda pair: pair.p_value)
    assert smaller.p_value == pytest.approx(0.0171, abs=1e-4)
    assert larger.p_value == pytest.approx(0.0222, abs=1e-4)
    assert smaller.adjusted == pytest.approx(3 * smaller.p_value)
    assert larger.adjusted == smaller.adjusted > 2 * larger.p_value  # never below a smaller one
    assert b_c.adjusted == b_c.p_value > 0.5


def test_what_is_lost_by_the_correction_is_not_called_better():
    a, b = [0.60, 0.61, 0.62, 0.60], [0.58, 0.58, 0.61, 0.585]
    alone = judge(row(a=a, b=b)).pairs[0]
    assert alone.p_value == alone.adjusted
    assert 0.02 < alone.p_value < 0.05
    assert alone.verdict == "better"
    among_others = judge(row(a=a, b=b, c=[0.58, 0.60, 0.60, 0.62])).pairs[0]
    assert among_others.p_value == alone.p_value
    assert among_others.adjusted > 0.05
    assert among_others.verdict == "not distinguishable at n=4"


SHAKE = np.array([-0.002, 0.001, 0.002, -0.001, 0.0])


def test_methods_that_all_differ_are_ranked():
    verdicts = judge(row(low=0.4 + SHAKE, high=0.6 - SHAKE, middle=0.5 + SHAKE[::-1]))
    assert verdicts.ranking == (("high",), ("middle",), ("low",))


def test_methods_that_cannot_be_told_apart_share_a_place():
    verdicts = judge(row(a=0.6 + SHAKE, b=0.4 + SHAKE[::-1], c=0.6001 - SHAKE))
    assert verdicts.ranking == (("c", "a"), ("b",))


def test_methods_none_of_which_differs_have_no_ranking():
    assert judge(row(a=0.6 + SHAKE, b=0.6001 - SHAKE, c=0.5999 + SHAKE[::-1])).ranking is None


def test_one_method_and_one_seed_have_no_ranking():
    assert judge(row(a=0.6 + SHAKE)).ranking is None
    assert judge(row(a=[0.9], b=[0.1])).ranking is None


def test_a_method_between_two_that_differ_leaves_no_ranking():
    verdicts = judge(
        row(
            best=0.60 + SHAKE,
            between=[0.66, 0.53, 0.55, 0.64, 0.57],
            worst=0.58 - SHAKE,
        )
    )
    differ = {(p.first, p.second) for p in verdicts.pairs if p.adjusted < 0.05}
    assert differ == {("best", "worst")}
    assert verdicts.ranking is None


def test_that_such_a_method_is_far_from_a_fourth_makes_no_ranking_either():
    verdicts = judge(
        row(
            best=0.60 + SHAKE,
            between=[0.66, 0.53, 0.55, 0.64, 0.57],
            worst=0.58 - SHAKE,
            far=0.1 + SHAKE[::-1],
        )
    )
    differ = {(p.first, p.second) for p in verdicts.pairs if p.adjusted < 0.05}
    assert differ == {("best", "worst"), ("best", "far"), ("between", "far"), ("worst", "far")}
    assert verdicts.ranking is None


def test_methods_without_a_common_seed_are_not_ranked():
    values = {
        "a": {"pretrained": {0: 0.9, 1: 0.9, 2: 0.91}},
        "b": {"pretrained": {3: 0.1, 4: 0.1, 5: 0.11}},
    }
    verdicts = judge(Row("knn", "accuracy", {}, values))
    assert verdicts.pairs == ()
    assert verdicts.ranking is None


def test_a_method_gains_over_its_own_baseline():
    values = {
        "a": {
            "pretrained": {0: 0.5, 1: 0.6},
            "random": {0: 0.3, 1: 0.3},
            "scratch": {0: 0.4, 1: 0.49},
        },
        "b": {"pixels": {0: 0.2}, "pretrained": {0: 0.5}},
        "c": {"pretrained": {0: 0.5}},
        "d": {"scratch": {0: 0.5}},
    }
    verdicts = judge(Row("finetune", "accuracy", {}, values))
    assert [(gain.first, gain.second) for gain in verdicts.gains] == [
        ("a", "a scratch"),
        ("b", "b pixels"),
    ]
    assert verdicts.gains[0].difference.mean == pytest.approx(0.105)
    assert verdicts.gains[0].adjusted is None
    assert verdicts.means["a", "random"].mean == pytest.approx(0.3)
    assert ("d", "scratch") in verdicts.means


def test_numbers_of_the_pre_training_task_have_means_but_are_not_compared():
    verdicts = judge(row(own_task=True, a=0.6 + SHAKE, b=0.4 + SHAKE))
    assert verdicts.means["a", "pretrained"].mean == pytest.approx(0.6)
    assert (verdicts.pairs, verdicts.gains, verdicts.ranking) == ((), (), None)
