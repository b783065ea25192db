import math
import re

import matplotlib
import pytest

from mimkit.report.layers import Curves, Line
from mimkit.report.of_run import Spread
from mimkit.report.plots import layer_chart, training_charts

ROWS = [
    {
        "step": step,
        "loss/total": 1.0,
        "loss/patches": 0.5,
        "metric/patches/accuracy": 0.25 + step / 1000,
        "metric/patches/chance": 0.25,
        "grad_norm": 1.0,
        "lr": 0.1,
        "time/step_ms": 5.0,
    }
    for step in (10, 20, 30)
]


def titles(rows):
    return [chart.title for chart in training_charts(rows)]


def chart_of(rows, title):
    (chart,) = [chart for chart in training_charts(rows) if chart.title == title]
    return chart


def test_with_one_term_its_loss_stands_for_the_total():
    assert titles(ROWS) == ["Loss", "Accuracy", "Learning rate", "Gradient norm before clipping"]


def test_with_several_terms_each_is_shown_beside_the_total():
    rows = [row | {"loss/pixels": 0.1} for row in ROWS]
    assert titles(rows)[:4] == ["Loss: total", "Loss: patches", "Loss: pixels", "Patches accuracy"]


def test_heldout_values_share_the_plot_of_the_training_values():
    rows = [*ROWS, {"step": 30, "heldout/metric/patches/accuracy": 0.27}]
    chart = chart_of(rows, "Accuracy")
    assert chart.description == (
        "Accuracy over the steps: training ends at 28.0\u202f%, held-out ends at 27.0\u202f%, "
        "chance is 25.0\u202f%."
    )
    assert "var(--first)" in chart.svg
    assert "var(--second)" in chart.svg


def test_chance_is_drawn_dashed():
    assert "stroke-dasharray" in chart_of(ROWS, "Accuracy").svg
    assert "stroke-dasharray" not in chart_of(ROWS, "Loss").svg


def test_the_most_frequent_class_is_drawn_as_its_mean_and_not_as_a_plot():
    rows = [row | {"metric/patches/majority": 0.01 * row["step"]} for row in ROWS]
    assert titles(rows) == titles(ROWS)
    description = chart_of(rows, "Accuracy").description
    assert "chance is 25.0\u202f%, most frequent class is 20.0\u202f%" in description


def test_the_loss_of_even_odds_is_drawn_beside_the_loss():
    rows = [row | {"metric/patches/even": 2.0} for row in ROWS]
    assert titles(rows) == titles(ROWS)
    assert "even odds is 2" in chart_of(rows, "Loss").description


def test_evaluations_during_training_get_plots_of_their_own():
    rows = [*ROWS, {"step": 20, "knn/accuracy": 0.4}]
    assert "Knn accuracy" in titles(rows)


def test_numbers_that_are_not_finite_leave_a_gap():
    rows = [*ROWS, {"step": 40, "loss/patches": math.nan}]
    assert "training ends at 0.5" in chart_of(rows, "Loss").description


def test_plots_take_only_the_colours_of_the_page():
    for chart in training_charts(ROWS):
        assert not re.search(r"#[0-9a-f]{6}", chart.svg)


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    training_charts(ROWS)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("rows", [[], [{"step": 1}]])
def test_nothing_logged_gives_no_plots(rows):
    assert training_charts(rows) == []


def line(pool, init, start, chosen=(2,), num_layers=3, seeds=2):
    spreads = {
        layer: Spread(start + layer / 100, 0.01, (start,) * seeds)
        for layer in range(1, num_layers + 1)
    }
    return Line(pool, init, spreads, chosen)


def layers(*lines):
    return Curves("linear_probe", "accuracy", 1.0, "num layers 3", lines)


def test_the_layers_are_described_line_by_line_with_what_was_chosen():
    chart = layer_chart(
        layers(line("mean", "pretrained", 0.4, (2, 3, 2)), line("mean", "random", 0.3, ()))
    )
    assert chart.title == "Accuracy by layer (linear_probe)"
    assert chart.description.replace("\u202f", " ") == (
        "Accuracy by layer (linear_probe). "
        "Pre-trained, mean: 41.0 % at layer 1, 43.0 % at layer 3, chosen layer 2, 3. "
        "Random weights, mean: 31.0 % at layer 1, 33.0 % at layer 3. "
        "The table below holds the numbers."
    )


def test_starts_differ_in_colour_and_pools_in_dashes():
    def styles(*lines):
        svg = layer_chart(layers(*lines)).svg
        assert not re.search(r"#[0-9a-f]{6}", svg)
        return {
            (style.partition("stroke: ")[2].partition(";")[0], "dasharray" in style)
            for style in re.findall(r'style="([^"]*)"', svg)
            if "stroke-width: 1.6" in style
        }

    ours, random = line("mean", "pretrained", 0.4), line("mean", "random", 0.3)
    assert styles(ours, random) == {("var(--first)", False), ("var(--second)", False)}
    assert styles(ours, line("cls", "pretrained", 0.3)) == {
        ("var(--first)", False),
        ("var(--first)", True),
    }


def test_every_chosen_layer_is_ringed_once():
    def rings(*chosen):
        svg = layer_chart(layers(line("mean", "pretrained", 0.4, chosen))).svg
        return len(re.findall(r"<use [^>]*stroke-width: 1.3", svg))

    assert [rings(), rings(2), rings(2, 2), rings(2, 3)] == [0, 1, 1, 2]


def test_many_layers_get_fewer_ticks():
    def ticks(num_layers):
        chart = layer_chart(layers(line("mean", "pretrained", 0.4, (), num_layers)))
        return [int(text) for text in re.findall(r">(\d+)</text>", chart.svg)]

    assert ticks(12) == list(range(1, 13))
    assert ticks(48)[-1] == 48
    assert len(ticks(48)) < 20
