"""The report's plots: training curves, accuracy against labels, accuracy by layer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from mimkit import words
from mimkit.report.layers import Curves, Line
from mimkit.report.of_run import BASELINES, Row, Table
from mimkit.report.svg import FIRST, INK, SECOND, Plot

MAX_POINTS = 500
"""Longer curves are shown as means of neighbours."""
MAX_LAYER_TICKS = 16
LOG_FROM = 30
"""Gradient norms that differ by more than this factor are shown on a logarithmic axis."""
DASHES = (5, 4), (1, 3)
"""Of the lines that show what guessing reaches."""
POOLS = ("o", "-"), ("s", (0, (5, 2))), ("^", (0, (1, 1.5)))
"""Marker and dashes for each way of pooling: told apart without any colour."""
KINDS = ("loss", "metric", "evaluation", "lr", "grad_norm")
"""Kinds of curves, in the order in which they are shown."""

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Chart:
    """One plot.

    Args:
        title: what it shows.
        description: the same in words, for those who cannot see it.
        svg: an ``<svg>`` element.
    """

    title: str
    description: str
    svg: str


def training_charts(rows: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Plots the log over the steps: losses, metrics, evaluations, learning rate, gradient norm."""
    curves = logged(rows)
    names = dict.fromkeys(name.removeprefix("heldout/") for name in curves)
    terms = {name.split("/")[1] for name in names if name.startswith("loss/")} - {"total"}
    if len(terms) == 1:
        # The total is then the same curve times its weight.
        names.pop("loss/total", None)
    shown = [name for name in names if not words.is_guess(name) and name[:5] != "time/"]
    shown.sort(key=lambda name: KINDS.index(_kind(name)))
    return [_over_steps(name, curves, len(terms)) for name in shown]


def label_chart(table: Table) -> Chart:
    """Plots one metric against the number of labels, pre-trained beside its baseline."""
    title = f"{title_of(table.metric)} against labels ({table.name})"
    ticks = {row.fraction: _tick(row) for row in table.rows if row.fraction is not None}
    looks = {"pretrained": ("pre-trained", FIRST, "o")}
    if table.baseline is not None:
        looks = {table.baseline: (BASELINES[table.baseline], SECOND, "s")} | looks
    with (plot := Plot(6.4, 3.4)) as axes:
        for init, (label, colour, marker) in looks.items():
            points = [
                (row.fraction, row.by_init[init])
                for row in table.rows
                if row.fraction is not None and init in row.by_init
            ]
            axes.errorbar(
                [fraction for fraction, _ in points],
                [spread.mean for _, spread in points],
                yerr=[spread.std or 0.0 for _, spread in points],
                color=colour,
                marker=marker,
                markersize=5,
                capsize=3,
                label=label,
            )
            for fraction, spread in points:
                seeds = [fraction] * len(spread.values)
                axes.plot(seeds, spread.values, marker, color=colour, markersize=3, alpha=0.35)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel("labels used")
        axes.margins(x=0.08)
        axes.legend(loc="best")
        format_values(axes, table.metric)
        svg = plot.svg(f"{title} {table.protocol}")
        return Chart(title, f"{title}; the table above holds its numbers.", svg)


def layer_chart(curves: Curves) -> Chart:
    """Plots one metric over the layers: a colour for each start, a style for each pool.

    The layers that were chosen on development images are ringed.
    """
    title = f"{title_of(curves.metric)} by layer ({curves.name})"
    described = [_described(line, curves.metric) for line in curves.lines]
    starts = list(dict.fromkeys(line.init for line in curves.lines))
    with (plot := Plot(6.4, 3.6)) as axes:
        for line in curves.lines:
            colour = FIRST if line.init == "pretrained" else SECOND
            marker, dashes = POOLS[curves.pools.index(line.pool) % len(POOLS)]
            layers = sorted(line.by_layer)
            axes.errorbar(
                layers,
                [line.by_layer[layer].mean for layer in layers],
                yerr=[line.by_layer[layer].std or 0.0 for layer in layers],
                color=colour,
                marker=marker,
                linestyle=dashes,
                markersize=4.5,
                elinewidth=1.0,
                capsize=2,
                label=line.label,
            )
            for layer in sorted(set(line.chosen)):
                height = line.by_layer[layer].mean
                axes.plot(layer, height, "o", mfc="none", mec=colour, mew=1.3, markersize=12)
        axes.set_xlabel("layer")
        if len(curves.layers) <= MAX_LAYER_TICKS:
            axes.set_xticks(curves.layers)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(MAX_LAYER_TICKS, integer=True))
        axes.set_xlim(0.5, max(curves.layers) + 0.5)
        handles, labels = axes.get_legend_handles_labels()
        # A column of the legend for each start, a row for each pool.
        by_start = sorted(range(len(labels)), key=lambda n: starts.index(curves.lines[n].init))
        axes.legend(
            [handles[n] for n in by_start],
            [labels[n] for n in by_start],
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=len(starts),
        )
        format_values(axes, curves.metric)
        description = f"{title}. {' '.join(described)} The table below holds the numbers."
        return Chart(title, description, plot.svg(f"{title} {curves.fraction} {curves.protocol}"))


def _described(line: Line, metric: str) -> str:
    ends = ", ".join(
        f"{words.number(line.by_layer[layer].mean, metric)} at layer {layer}"
        for layer in (min(line.by_layer), max(line.by_layer))
    )
    text = f"{line.label}: {ends}"
    if line.chosen:
        text += f", chosen layer {', '.join(map(str, sorted(set(line.chosen))))}"
    return f"{text[:1].upper()}{text[1:]}."


def _over_steps(name: str, curves: Mapping[str, Curve], num_terms: int) -> Chart:
    kind = _kind(name)
    title = {
        "loss": "Loss" if num_terms == 1 else f"Loss: {name.removeprefix('loss/')}",
        "metric": title_of(
            name.rpartition("/")[2] if num_terms == 1 else name.removeprefix("metric/")
        ),
        "evaluation": title_of(name),
        "lr": "Learning rate",
        "grad_norm": "Gradient norm before clipping",
    }[kind]
    looks = {name: ("training" if kind in ("loss", "metric") else "", FIRST)}
    looks[f"heldout/{name}"] = ("held-out", SECOND)
    found = guesses(name, curves)
    described = []
    with (plot := Plot(4.6, 2.7)) as axes:
        for key, (label, colour) in looks.items():
            if key in curves:
                steps, values = thinned(curves[key])
                marker = "o" if len(steps) < 40 else ""
                axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=3.5)
                described.append(f"{label} ends at {words.number(values[-1], name)}".strip())
        for (guess, height), dashes in zip(found.items(), DASHES, strict=False):
            axes.axhline(height, color=INK, linestyle=(0, dashes), linewidth=1.2, label=guess)
            described.append(f"{guess} is {words.number(height, name)}")
        if len(axes.lines) > 1:
            axes.legend(loc="best")
        if kind == "grad_norm" and max(curves[name][1]) > LOG_FROM * min(curves[name][1]) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda norm, _: f"{norm:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        format_counts(axes)
        format_values(axes, name)
        return Chart(title, f"{title} over the steps: {', '.join(described)}.", plot.svg(name))


def _kind(name: str) -> str:
    first = name.split("/", maxsplit=1)[0]
    return first if first in KINDS else "evaluation"


def logged(rows: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """Turns the log into curves: the name of each to its steps and values."""
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def thinned(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """Shortens a curve to means of neighbours."""
    size = -(-len(curve[0]) // max_points)
    steps, values = (
        [sum(part) / len(part) for part in (axis[i : i + size] for i in range(0, len(axis), size))]
        for axis in curve
    )
    return steps, values


def guesses(name: str, curves: Mapping[str, Curve]) -> dict[str, float]:
    """What guessing reaches on average, where a loss logs it beside its accuracy or itself."""
    found = {}
    kind, _, term = name.partition("/")
    even = curves.get(f"metric/{term}/{words.EVEN_LOSS}")
    if kind == "loss" and even is not None:
        found["even odds"] = sum(even[1]) / len(even[1])
    for guess, label in words.GUESSES.items():
        key = f"{name.rpartition('/')[0]}/{guess}"
        curve = curves.get(key) or curves.get(f"heldout/{key}")
        if "accuracy" in name and curve is not None:
            found[label] = sum(curve[1]) / len(curve[1])
    return found


def format_counts(axes: Axes) -> None:
    """Writes whole numbers below a plot: few of them, and short ones."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda step, _: words.magnitude(step) if step >= 1e5 else words.count(step))
    )


def format_values(axes: Axes, metric: str) -> None:
    """Writes the values of a metric as the tables do."""
    if words.is_share(metric):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _tick(row: Row) -> str:
    fraction = words.share(row.fraction or 0.0)
    return fraction if row.num_labels is None else f"{fraction}\n{words.count(row.num_labels)}"


def title_of(name: str) -> str:
    """A metric's name as a heading."""
    text = name.replace("_", " ").replace("/", " ")
    return text[:1].upper() + text[1:]
