import math
import re

import matplotlib
import pytest

from mimkit.report.plots import training_charts

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
