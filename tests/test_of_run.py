"""A run as a study: what it says of all that was measured, and what not."""

import json
from dataclasses import asdict

import pytest

from mimkit.evaluate.base import Result
from mimkit.folder import RunFolder
from mimkit.report import of_run
from mimkit.report.answer import tally
from mimkit.report.layers import layers
from mimkit.report.looks import looks

CHOSEN = "chosen on development images"


def probe(layer, value, *, init="pretrained", seed=0, pool="mean", fraction=1.0, chosen=None):
    protocol = {"label_fraction": fraction, "layer": layer, "num_layers": 3, "pool": pool}
    found = {"weight_decay": 0.1} | ({} if chosen is None else {"layer": chosen})
    return Result("linear_probe", "accuracy", value, 10**9, seed, init, protocol, found)


def all_layers(best, *, gain=0.0, **options):
    """Three layers, of which the middle one is best on test images, and the chosen one."""
    values = {1: 0.3 + gain, 2: 0.5 + gain, 3: 0.4 + gain}
    single = [probe(layer, value, **options) for layer, value in values.items()]
    return [*single, probe(CHOSEN, values[best], chosen=best, **options)]


@pytest.fixture
def study(tmp_path):
    def of(results):
        folder = RunFolder(tmp_path)
        folder.results.write_text(json.dumps({"results": [asdict(one) for one in results]}))
        return of_run.study(folder)

    return of


def probed():
    return [
        result
        for seed, best in enumerate((3, 2, 3))
        for pool in ("mean", "cls")
        for result in (
            *all_layers(best, gain=0.1 + 0.001 * seed, seed=seed, pool=pool),
            *all_layers(1, init="random", seed=seed, pool=pool),
        )
    ]


def of_layers(found):
    return layers(found, looks(found.labels))


def test_layers_are_gathered_for_each_pool_with_a_line_for_each_start(study):
    mean, cls = of_layers(study(probed()))
    assert [one.row.protocol["layer"] for one in mean.verdicts] == [1, 2, 3]
    assert {one.row.protocol["pool"] for one in cls.verdicts} == {"cls"}
    assert [line.start for line in mean.lines] == ["pretrained", "random"]
    second = mean.verdicts[1]
    assert second.means[of_run.LABEL, "pretrained"].mean == pytest.approx(0.601)
    assert second.row.values[of_run.LABEL]["random"] == {0: 0.5, 1: 0.5, 2: 0.5}


def test_each_line_says_which_layers_the_seeds_chose(study):
    for found in of_layers(study(probed())):
        assert [line.chosen for line in found.lines] == [(2, 3), (1,)]


def test_label_fractions_are_charts_of_their_own(study):
    results = [r for fraction in (0.1, 1.0) for r in all_layers(2, fraction=fraction)]
    titles = [found.title.replace("\u202f", " ") for found in of_layers(study(results))]
    assert titles == [
        f"Linear probe accuracy by layer ({share} of the labels, pool mean)"
        for share in ("10 %", "100 %")
    ]


def test_the_answer_speaks_for_the_chosen_layer_not_for_the_best(study):
    mean = (0.5 + 0.601 + 0.502) / 3 - 0.3  # layers 3, 2, 3 against layer 1
    assert f"(+{100 * mean:.1f} points" in study(probed()).answer


def test_single_layers_are_not_counted_as_comparisons(study):
    results = [
        result
        for fraction in (0.1, 1.0)
        for seed in range(2)
        for result in (
            *all_layers(2, gain=0.1 + 0.001 * seed, fraction=fraction, seed=seed),
            *all_layers(2, init="random", fraction=fraction, seed=seed),
        )
    ]
    found = study(results)
    assert tally(found.verdicts).startswith("Over all 2 comparisons with a baseline")


def test_a_probe_of_the_last_layer_alone_is_no_chart_of_layers(study):
    found = study([probe("last", 0.5), probe("last", 0.4, init="random")])
    assert of_layers(found) == []
    assert len(found.verdicts) == 1


def test_protocols_without_a_pool_are_gathered_too(study):
    (found,) = of_layers(study([Result("mine", "accuracy", 0.5, 10, 0, protocol={"layer": 4})]))
    assert (found.title, found.chart) == ("Mine accuracy by layer", None)
    assert [(line.start, line.chosen) for line in found.lines] == [("pretrained", ())]


def test_without_a_baseline_nothing_is_claimed(study):
    assert study([probe("last", 0.5)]).answer == ""
