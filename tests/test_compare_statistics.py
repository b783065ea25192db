import math

import numpy as np
import pytest
from scipy import stats

from mimkit.comparison.records import Row
from mimkit.comparison.statistics import compare, judge, seeds_needed, spread

SEEDS, COMPARISONS, TEST_IMAGES, GAIN = 5, 1000, 2000, 0.01


def by_seed(values):
    return dict(enumerate(map(float, values)))


def row(start="pretrained", own_task=False, **methods):
    values = {label: {start: by_seed(numbers)} for label, numbers in methods.items()}
    return Row("finetune", "accuracy", {}, values, own_task)


# Seeds that are the same for both methods, effects of a seed on one of them, and test images.


def measured(generator, share):
    return generator.binomial(TEST_IMAGES, share.clip(0, 1)) / TEST_IMAGES


def normal(generator, shape):
    return 0.01 * generator.standard_normal(shape)


def unlucky(generator, shape):
    """Skewed by -1: now and then a seed is much worse."""
    return 0.01 * (4 - generator.gamma(4, size=shape)) / 2


def none(generator, shape):
    return np.zeros(shape)


MODELS = {
    "test images alone": (none, none),
    "normal": (normal, normal),
    "both skewed": (unlucky, unlucky),
    "one skewed": (unlucky, none),
}


def simulate(model):
    generator = np.random.default_rng(0)
    shape = (COMPARISONS, SEEDS)
    luck = 0.02 * generator.standard_normal(shape)
    effects = [effect(generator, shape) for effect in MODELS[model]]
    return (
        measured(generator, 0.6 + GAIN + luck + effects[0]),
        measured(generator, 0.6 + luck + effects[1]),
    )


@pytest.mark.parametrize("model", MODELS)
def test_at_five_seeds_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says(model):
    found = [
        compare("a", "b", by_seed(a), by_seed(b)).difference
        for a, b in zip(*simulate(model), strict=True)
    ]
    coverage = np.mean([one.low <= GAIN <= one.high for one in found])
    assert 0.93 <= coverage <= 0.97


@pytest.mark.parametrize("model", MODELS)
def test_the_percentile_bootstrap_would_cover_it_far_less_often(model):
    a, b = simulate(model)
    generator = np.random.default_rng(1)
    drawn = generator.integers(0, SEEDS, (1000, SEEDS))
    means = (a - b)[:, drawn].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert np.mean((low <= GAIN) & (high >= GAIN)) < 0.88


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    _, values = simulate("both skewed")
    found = [spread(by_seed(v)) for v in values]
    assert 0.93 <= np.mean([one.low <= 0.6 <= one.high for one in found]) <= 0.97


def test_equal_methods_are_hardly_ever_ranked_however_many_pairs_there_are():
    generator = np.random.default_rng(0)
    luck = 0.02 * generator.standard_normal((400, SEEDS))
    values = [measured(generator, 0.6 + luck + normal(generator, luck.shape)) for _ in range(4)]
    ranked = [
        judge(row(**dict(zip("abcd", numbers, strict=True)))).ranking
        for numbers in zip(*values, strict=True)
    ]
    assert sum(ranking is not None for ranking in ranked) <= 400 * 0.05


def test_a_difference_is_the_paired_t_test():
    a, b = [0.52, 0.61, 0.55, 0.58, 0.49], [0.50, 0.57, 0.54, 0.52, 0.50]
    pair = compare("a", "b", by_seed(a), by_seed(b))
    expected = stats.ttest_rel(a, b)
    assert pair.p_value == pytest.approx(expected.pvalue)
    assert pair.difference.low == pytest.approx(expected.confidence_interval().low)
    assert pair.difference.high == pytest.approx(expected.confidence_interval().high)
    assert pair.difference.num_seeds == 5


def test_only_seeds_that_both_have_are_paired():
    pair = compare("a", "b", {0: 0.9, 1: 0.5, 2: 0.6}, {2: 0.4, 1: 0.3, 3: 0.0})
    assert pair.difference.num_seeds == 2
    assert pair.difference.mean == pytest.approx(0.2)
    assert compare("a", "b", {0: 0.9}, {1: 0.9}) is None


def test_one_seed_has_no_interval_and_no_p_value():
    pair = compare("a", "b", {0: 0.5}, {0: 0.4})
    assert pair.difference.mean == pytest.approx(0.1)
    assert (pair.difference.low, pair.difference.high) == (None, None)
    assert (pair.p_value, pair.seeds_needed) == (None, None)
    assert pair.verdict == "one seed: no interval"


def test_two_seeds_are_worth_little():
    pair = compare("a", "b", {0: 0.50, 1: 0.54}, {0: 0.40, 1: 0.40})
    assert pair.difference.low < 0 < pair.difference.high
    assert pair.verdict == "not distinguishable at n=2"


def test_a_number_that_is_none_counts_as_not_measured():
    found = spread({0: 0.5, 1: math.nan, 2: 0.7, 3: math.inf})
    assert (found.mean, found.num_seeds) == (pytest.approx(0.6), 2)
    nothing = spread({0: math.nan})
    assert math.isnan(nothing.mean)
    assert (nothing.low, nothing.num_seeds) == (None, 0)
    pair = compare("a", "b", {0: 0.5, 1: math.nan, 2: 0.7}, {0: 0.4, 1: 0.4, 2: 0.5})
    assert pair.difference.num_seeds == 2
    assert compare("a", "b", {0: math.nan}, {0: 0.4}) is None
    verdicts = judge(row(a=[math.nan, math.nan], b=[0.4, 0.5]))
    assert verdicts.pairs == ()
    assert verdicts.ranking is None


def test_the_same_difference_in_every_seed_has_an_interval_of_no_width():
    pair = compare("a", "b", {0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})
    assert (pair.difference.low, pair.difference.high) == (0.25, 0.25)
    assert pair.verdict == "better"
    assert (pair.p_value, pair.seeds_needed) == (0.0, None)
    equal = compare("a", "b", {0: 0.5, 1: 0.75}, {0: 0.5, 1: 0.75})
    assert equal.verdict == "not distinguishable at n=2"
    assert (equal.p_value, equal.seeds_needed) == (1.0, None)


def test_rounding_is_no_spread():
    assert seeds_needed([0.3 - 0.2, 0.2 - 0.1, 0.4 - 0.3]) is None


@pytest.mark.parametrize(
    ("effect", "expected"), [(0.5, 34), (0.8, 15), (1.0, 10), (0.2, 199), (1.5, 6)]
)
def test_seeds_needed_are_those_of_the_tables(effect, expected):
    """Paired t test, 80 % power at 5 % two-sided: 34 pairs for half a deviation, and so on."""
    deviation = stats.norm.ppf(np.linspace(0.05, 0.95, 9))
    deviation /= deviation.std(ddof=1)
    assert seeds_needed(effect + deviation) == expected
    assert seeds_needed(-effect - deviation) == expected


def test_that_many_seeds_do_show_it_in_four_of_five_cases():
    generator = np.random.default_rng(0)
    num_seeds = seeds_needed([-0.2, 0.8, 1.8])  # mean 0.8, deviation 1
    drawn = 0.8 + generator.standard_normal((4000, num_seeds))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.02
    )


def test_a_gap_that_a_thousand_seeds_would_not_show_has_no_number():
    assert seeds_needed([1.001, -1.0, 0.001]) is None


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
    verdicts = judge(row(a=0.6 + SHAKE, b=0.4 + SHAKE, c=0.6001 - SHAKE))
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
            far=0.1 + SHAKE,
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
