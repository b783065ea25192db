import math
import re
from pathlib import Path

import matplotlib
import pytest

from mimkit.report.charts import layer_chart
from mimkit.report.curves import run_charts
from mimkit.report.findings import Cell, Outcome
from mimkit.report.looks import looks
from mimkit.report.rows import Number, rows
from mimkit.report.verdicts import judge

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
    return [chart.title for chart in run_charts(rows)]


def chart_of(rows, title):
    (chart,) = [chart for chart in run_charts(rows) if chart.title == title]
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
    assert "k-NN accuracy" in titles(rows)


def test_numbers_that_are_not_finite_leave_a_gap():
    rows = [*ROWS, {"step": 40, "loss/patches": math.nan}]
    assert "training ends at 0.5" in chart_of(rows, "Loss").description


def test_plots_take_only_the_colours_of_the_page():
    for chart in run_charts(ROWS):
        assert not re.search(r"#[0-9a-f]{6}", chart.svg)


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    run_charts(ROWS)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("rows", [[], [{"step": 1}]])
def test_nothing_logged_gives_no_plots(rows):
    assert run_charts(rows) == []


def probed(start, slope, *, num_layers=3, label="ours", pool="mean"):
    return [
        {
            "evaluator": "linear_probe",
            "metric": "accuracy",
            "value": 0.4 + slope * layer,
            "num_images": 100,
            "seed": 0,
            "init": start,
            "protocol": {"label_fraction": 1.0, "layer": layer, "pool": pool},
        }
        for layer in range(1, num_layers + 1)
    ]


def chosen(start, layer, pool="mean"):
    (result,) = probed(start, 0, num_layers=1, pool=pool)
    protocol = result["protocol"] | {"layer": "chosen"}
    return result | {"protocol": protocol, "chosen": {"layer": layer}}


def found(*results):
    """What a run with these results says of its layers."""
    numbers = [Number("ours", 0, result["protocol"], result) for result in results]
    verdicts = [judge(row) for row in rows(["ours"], numbers)]
    outcome = Outcome(Cell("ours", 0), "finished", Path("r"), "", results=results)
    verdicts = [one for one in verdicts if isinstance(one.row.protocol["layer"], int)]
    return layer_chart(verdicts, [outcome], looks(["ours"]))


def test_the_layers_are_described_line_by_line_with_what_was_chosen():
    chart = found(
        *probed("pretrained", 0.01),
        *probed("random", -0.01),
        chosen("pretrained", 2),
        chosen("pretrained", 3),
        chosen("random", 1),
    )
    title = "Linear probe accuracy by layer (100 % of the labels, pool mean)"
    assert chart.description.replace("\u202f", " ") == (
        f"{title}. ours: 41.0 % at layer 1, 43.0 % at layer 3, chosen 2, 3. "
        "random weights: 39.0 % at layer 1, 37.0 % at layer 3, chosen 1."
    )


def test_starts_differ_in_colour_and_dashes():
    svg = found(*probed("pretrained", 0.01), *probed("random", -0.01)).svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    styles = {
        (style.partition("stroke: ")[2].partition(";")[0], "dasharray" in style)
        for style in re.findall(r'style="fill: none; ([^"]*)"', svg)
        if "stroke-width: 1.6" in style or "dasharray: 4" in style
    }
    assert ("var(--series-1)", False) in styles
    assert ("var(--muted)", True) in styles


@pytest.mark.parametrize(("layers", "rings"), [([], 0), ([2], 1), ([2, 2], 1), ([2, 3], 2)])
def test_every_chosen_layer_is_ringed_once(layers, rings):
    picked = [chosen("pretrained", layer) for layer in layers]
    svg = found(*probed("pretrained", 0.01), *picked).svg
    assert len(re.findall(r"<use [^>]*stroke-width: 1.3", svg)) == rings


def test_many_layers_get_fewer_ticks():
    def ticks(num_layers):
        svg = found(*probed("pretrained", 0.001, num_layers=num_layers)).svg
        return [int(text) for text in re.findall(r">(\d+)</text>", svg)]

    assert ticks(12) == list(range(1, 13))
    assert ticks(48)[-1] >= 40
    assert len(ticks(48)) < 20
