"""The report's plots: the training curves, and accuracy against labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from mimkit.report import words
from mimkit.report.findings import BASELINES, Row, Table
from mimkit.report.svg import FIRST, INK, SECOND, Plot

MAX_POINTS = 500
"""Longer curves are shown as means of neighbours."""
LOG_FROM = 30
"""Gradient norms that differ by more than this factor are shown on a logarithmic axis."""
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
    curves = _curves(rows)
    names = dict.fromkeys(name.removeprefix("heldout/") for name in curves)
    terms = {name.split("/")[1] for name in names if name.startswith("loss/")} - {"total"}
    if len(terms) == 1:
        # The total is then the same curve times its weight.
        names.pop("loss/total", None)
    shown = [name for name in names if not name.endswith("/chance") and name[:5] != "time/"]
    shown.sort(key=lambda name: KINDS.index(_kind(name)))
    return [_over_steps(name, curves, len(terms)) for name in shown]


def label_chart(table: Table) -> Chart:
    """Plots one metric against the number of labels, pre-trained beside its baseline."""
    title = f"{_title(table.metric)} against labels ({table.evaluator})"
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
        _format_values(axes, table.metric)
        svg = plot.svg(f"{title} {table.protocol}")
        return Chart(title, f"{title}; the table above holds its numbers.", svg)


def _over_steps(name: str, curves: Mapping[str, Curve], num_terms: int) -> Chart:
    kind = _kind(name)
    title = {
        "loss": "Loss" if num_terms == 1 else f"Loss: {name.removeprefix('loss/')}",
        "metric": _title(
            name.rpartition("/")[2] if num_terms == 1 else name.removeprefix("metric/")
        ),
        "evaluation": _title(name),
        "lr": "Learning rate",
        "grad_norm": "Gradient norm before clipping",
    }[kind]
    looks = {name: ("training" if kind in ("loss", "metric") else "", FIRST)}
    looks[f"heldout/{name}"] = ("held-out", SECOND)
    chance = _chance(name, curves)
    described = []
    with (plot := Plot(4.6, 2.7)) as axes:
        for key, (label, colour) in looks.items():
            if key in curves:
                steps, values = _thinned(curves[key])
                marker = "o" if len(steps) < 40 else ""
                axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=3.5)
                described.append(f"{label} ends at {words.number(values[-1], name)}".strip())
        if chance is not None:
            axes.axhline(chance, color=INK, linestyle=(0, (5, 4)), linewidth=1.2, label="chance")
            described.append(f"chance is {words.number(chance, name)}")
        if len(axes.lines) > 1:
            axes.legend(loc="best")
        if kind == "grad_norm" and max(curves[name][1]) > LOG_FROM * min(curves[name][1]) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda norm, _: f"{norm:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(
            FuncFormatter(
                lambda step, _: words.magnitude(step) if step >= 1e5 else words.count(step)
            )
        )
        _format_values(axes, name)
        return Chart(title, f"{title} over the steps: {', '.join(described)}.", plot.svg(name))


def _kind(name: str) -> str:
    first = name.split("/", maxsplit=1)[0]
    return first if first in KINDS else "evaluation"


def _curves(rows: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def _thinned(curve: Curve) -> Curve:
    size = -(-len(curve[0]) // MAX_POINTS)
    steps, values = (
        [sum(part) / len(part) for part in (axis[i : i + size] for i in range(0, len(axis), size))]
        for axis in curve
    )
    return steps, values


def _chance(name: str, curves: Mapping[str, Curve]) -> float | None:
    """What guessing reaches, where a loss logs it beside its accuracy."""
    if "accuracy" not in name:
        return None
    chance = f"{name.rpartition('/')[0]}/chance"
    curve = curves.get(chance) or curves.get(f"heldout/{chance}")
    return curve[1][-1] if curve else None


def _format_values(axes: Axes, metric: str) -> None:
    if words.is_share(metric):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _tick(row: Row) -> str:
    fraction = words.share(row.fraction or 0.0)
    return fraction if row.num_labels is None else f"{fraction}\n{words.count(row.num_labels)}"


def _title(name: str) -> str:
    text = name.replace("_", " ").replace("/", " ")
    return text[:1].upper() + text[1:]
