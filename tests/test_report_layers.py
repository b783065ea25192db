from dataclasses import asdict

import pytest

from mimkit.evaluate.base import Result
from mimkit.evaluate.statistics import summarise
from mimkit.report.layers import curves
from mimkit.report.of_run import answer, tables, tally

CHOSEN = "chosen on development images"


def probe(layer, value, *, init="pretrained", seed=0, pool="mean", fraction=1.0, chosen=None):
    protocol = {"label_fraction": fraction, "layer": layer, "num_layers": 3, "pool": pool}
    found = {"weight_decay": 0.1} | ({} if chosen is None else {"layer": chosen})
    return Result("linear_probe", "accuracy", value, 100, seed, init, protocol, found)


def all_layers(best, *, gain=0.0, **options):
    """Three layers, of which the middle one is best on test images, and the chosen one."""
    values = {1: 0.3 + gain, 2: 0.5 + gain, 3: 0.4 + gain}
    single = [probe(layer, value, **options) for layer, value in values.items()]
    return [*single, probe(CHOSEN, values[best], chosen=best, **options)]


def in_file(results):
    return {"results": [asdict(result) for result in results], **summarise(results)}


@pytest.fixture
def probed():
    return in_file(
        [
            result
            for seed, best in enumerate((3, 2, 3))
            for pool in ("mean", "cls")
            for result in (
                *all_layers(best, gain=0.1 + 0.001 * seed, seed=seed, pool=pool),
                *all_layers(1, init="random", seed=seed, pool=pool),
            )
        ]
    )


def test_layers_are_gathered_into_one_line_for_each_pool_and_start(probed):
    (found,) = curves(probed)
    assert found.layers == [1, 2, 3]
    assert (found.num_seeds, found.fraction, found.protocol) == (3, 1.0, "num layers 3")
    assert [line.label for line in found.lines] == [
        "pre-trained, mean",
        "random weights, mean",
        "pre-trained, cls",
        "random weights, cls",
    ]
    assert found.lines[0].by_layer[2].mean == pytest.approx(0.601)
    assert found.lines[1].by_layer[2].values == (0.5, 0.5, 0.5)


def test_each_line_says_which_layer_every_seed_chose(probed):
    (found,) = curves(probed)
    assert [line.chosen for line in found.lines] == [(3, 2, 3), (1, 1, 1)] * 2


def test_label_fractions_are_curves_of_their_own():
    results = [r for fraction in (0.1, 1.0) for r in all_layers(2, fraction=fraction)]
    found = curves(in_file(results))
    assert [one.fraction for one in found] == [0.1, 1.0]
    assert found[0].name.replace("\u202f", " ") == "linear_probe, 10 % of the labels"
    assert found[1].name == "linear_probe"


def test_single_layers_are_in_no_table(probed):
    found = tables(probed)
    assert [(table.apart, len(table.rows)) for table in found] == [
        ("pool mean", 1),
        ("pool cls", 1),
    ]
    assert all(f"layer {CHOSEN}" in table.protocol for table in found)


def test_the_answer_speaks_for_the_chosen_layer_not_for_the_best(probed):
    mean = (0.5 + 0.601 + 0.502) / 3 - 0.3  # layers 3, 2, 3 against layer 1
    assert f"by {100 * mean:.1f} points" in answer(tables(probed))


def test_single_layers_are_not_counted_as_comparisons():
    results = [
        result
        for fraction in (0.1, 1.0)
        for seed in range(2)
        for result in (
            *all_layers(2, gain=0.1 + 0.001 * seed, fraction=fraction, seed=seed),
            *all_layers(2, init="random", fraction=fraction, seed=seed),
        )
    ]
    assert tally(tables(in_file(results))).startswith("Over all 2 comparisons with a baseline")


def test_a_probe_of_the_last_layer_alone_is_a_table_and_no_curve():
    results = in_file([probe("last", 0.5), probe("last", 0.4, init="random")])
    assert curves(results) == []
    assert len(tables(results)) == 1


def test_protocols_without_a_pool_are_named_by_their_start():
    plain = in_file([Result("mine", "accuracy", 0.5, 10, 0, protocol={"layer": 4})])
    (line,) = curves(plain)[0].lines
    assert (line.label, line.chosen) == ("pre-trained", ())
