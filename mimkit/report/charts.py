"""Results against labels, cost and layers: a colour and a marker for each method throughout."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mimkit import words
from mimkit.report.findings import Interval, Outcome, Row, Verdicts
from mimkit.report.looks import DASHED, Chart, Look, format_values, in_legend, legend
from mimkit.report.svg import INK, Plot
from mimkit.report.wording import BASELINES, key_of, name_of, worded

_LEAST_ROOM: Final = 0.05
"""Of the largest mean: closer means are not drawn farther apart."""
_MAX_TICKS: Final = 16
"""Layers that are numbered."""


_SHARED: Final = Look(INK, "o")
"""Of a baseline that is the same for all methods."""


def label_chart(
    verdicts: Sequence[Verdicts], styles: Mapping[str, Look], detail: str = ""
) -> Chart:
    """Plots one metric against the share of labels: methods solid, their baselines dashed.

    Args:
        verdicts: rows that only the label fraction tells apart, smallest first.
        styles: of the methods.
        detail: the settings that tell them from other rows of the same name.
    """
    row = verdicts[0].row
    title = f"{name_of(row.evaluator, row.metric)} against labels{f' ({detail})' if detail else ''}"
    lines = _lines(verdicts, styles)
    ticks = {_fraction(found.row): _tick(found.row) for found in verdicts}
    described = []
    with (plot := Plot(4.8, 3.3)) as axes:
        for number, ((label, start), points) in enumerate(lines.items()):
            # Beside each other, so that no interval hides another.
            shift = 1 + 0.035 * (number - (len(lines) - 1) / 2)
            name = _line_name(label, start)
            moved = [(fraction * shift, mean) for fraction, mean in points]
            look = styles.get(label, _SHARED)
            _errorbar(axes, moved, look, (label, start))
            if len(styles) == 1:
                _single_seeds(axes, verdicts, look, start, shift)
            described.append(f"{name}: {_ends(points, row.metric)}")
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel("labels used")
        axes.margins(x=0.08)
        legend(axes, (start for _, start in lines))
        _focus(axes, (mean for points in lines.values() for _, mean in points), row.metric)
        format_values(axes, row.metric)
        description = f"{title}. {'. '.join(described)}. The table above holds all numbers."
        return Chart(title, description, plot.svg(f"labels {row.evaluator} {key_of(row.protocol)}"))


def cost_chart(
    found: Verdicts, spent: Mapping[str, float], unit: str, styles: Mapping[str, Look]
) -> Chart:
    """Plots one metric against what pre-training cost, and the Pareto front.

    Args:
        found: the row.
        spent: method label to its cost; a baseline without pre-training costs nothing.
        unit: "s" or "FLOP".
        styles: of the methods.
    """
    metric = found.row.metric
    against = "time" if unit == "s" else "FLOPs"
    title = f"{name_of(found.row.evaluator, metric)} against {against}"
    points = _priced(found, spent)
    scale, called = _unit(max(cost for _, _, cost, _ in points), unit)
    front = pareto_front([(cost, mean.mean) for _, _, cost, mean in points])
    described = []
    with (plot := Plot(4.8, 3.3)) as axes:
        stairs = [(points[n][2] / scale, points[n][3].mean) for n in front]
        right = 1.08 * max(cost for _, _, cost, _ in points) / scale
        if stairs:
            xs, ys = zip(*stairs, strict=True)
            axes.step((*xs, right), (*ys, ys[-1]), where="post", color=INK, linewidth=1.0, zorder=1)
        for number, (label, start, cost, mean) in enumerate(points):
            name = _line_name(label, start)
            _errorbar(axes, [(cost / scale, mean)], styles.get(label, _SHARED), (label, start))
            if number in front:
                ring: Any = {"mfc": "none", "mec": INK, "mew": 1.1, "markersize": 13}
                axes.plot(cost / scale, mean.mean, "o", **ring)
            described.append(
                f"{name}: {words.number(mean.mean, metric)} at {_cost(cost, unit)}"
                + (", on the front" if number in front else "")
            )
        axes.set_xlim(-0.06 * right, right)
        axes.set_xlabel(f"{called} of {'preparation and ' if unit == 's' else ''}pre-training")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
        legend(axes, (start for _, start, _, _ in points))
        _focus(axes, (mean for *_, mean in points), metric)
        format_values(axes, metric)
        description = f"{title}. {'. '.join(described)}."
        return Chart(title, description, plot.svg(f"cost {unit} {title}"))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Finds the points that no other one beats, cheapest first.

    Args:
        points: cost and quality of each.

    Returns: numbers of those for which none costs no more and is better, or costs less and is
        as good.
    """
    return sorted(
        (
            number
            for number, (cost, quality) in enumerate(points)
            if not any(
                other_cost <= cost and other >= quality and (other_cost, other) != (cost, quality)
                for other_cost, other in points
            )
        ),
        key=lambda number: points[number],
    )


def layer_chart(
    verdicts: Sequence[Verdicts], outcomes: Sequence[Outcome], styles: Mapping[str, Look]
) -> Chart:
    """Plots one metric over the layers: methods solid, their random weights dashed.

    The layers that were chosen on development images are ringed.

    Args:
        verdicts: rows that only the layer tells apart.
        outcomes: of the runs, which name the chosen layers.
        styles: of the methods.
    """
    row = verdicts[0].row
    kept = {name: row.protocol[name] for name in ("label_fraction", "pool") if name in row.protocol}
    title = f"{name_of(row.evaluator, row.metric)} by layer"
    if kept:
        title = f"{title} ({', '.join(_setting(*one) for one in kept.items())})"
    lines = _lines(verdicts, styles, "layer")
    described = []
    with (plot := Plot(4.8, 3.3)) as axes:
        for (label, start), points in lines.items():
            look, name = styles.get(label, _SHARED), _line_name(label, start)
            _errorbar(axes, points, look, (label, start))
            chosen = chosen_layers(outcomes, label, start, row)
            for layer, mean in points:
                if layer in chosen:
                    axes.plot(
                        layer, mean.mean, "o", mfc="none", mec=look.colour, mew=1.3, markersize=13
                    )
            text = f"{name}: {_ends(points, row.metric, 'layer')}"
            described.append(text + (f", chosen {_listed(chosen)}" if chosen else ""))
        last = max(layer for points in lines.values() for layer, _ in points)
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(min(last, _MAX_TICKS), integer=True))
        axes.set_xlabel("layer")
        legend(axes, (start for _, start in lines))
        _focus(axes, (mean for points in lines.values() for _, mean in points), row.metric)
        format_values(axes, row.metric)
        description = f"{title}. {'. '.join(described)}."
        return Chart(title, description, plot.svg(f"layers {row.evaluator} {key_of(row.protocol)}"))


def _lines(
    verdicts: Sequence[Verdicts], styles: Mapping[str, Look], over: str = "label_fraction"
) -> dict[tuple[str, str], list[tuple[Any, Interval]]]:
    """Gathers (method, start) to its points; a baseline that is the same for all stands once.

    Pixels have no layers and no labels' worth of training: they stay in the table.
    """
    starts = ("pretrained", *(start for start in BASELINES if start != "pixels"))
    lines: dict[tuple[str, str], list[tuple[Any, Interval]]] = {}
    for label in styles:
        for start in starts:
            points = [
                (found.row.protocol[over], found.means[label, start])
                for found in verdicts
                if (label, start) in found.means and found.means[label, start].num_seeds
            ]
            if points:
                lines[label, start] = sorted(points, key=lambda point: point[0])
    for start in starts[1:]:
        same = [key for key in lines if key[1] == start]
        alike = all(lines[a] == lines[b] for a, b in pairwise(same))
        if alike and (len(same) > 1 or len(same) == len(styles)):
            points = lines[same[0]]
            for key in same:
                del lines[key]
            lines["", start] = points
    return dict(sorted(lines.items(), key=lambda line: line[0][1] != "pretrained"))


def _priced(found: Verdicts, spent: Mapping[str, float]) -> list[tuple[str, str, float, Interval]]:
    """Every method at its cost, and the baseline that it is compared with at none."""
    points = [
        (label, "pretrained", spent[label], found.means[label, "pretrained"])
        for label in spent
        if (label, "pretrained") in found.means and found.means[label, "pretrained"].num_seeds
    ]
    baselines = {
        label: (start, mean)
        for label, *_ in points
        for start in (gain.second.removeprefix(f"{label} ") for gain in found.gains)
        if (mean := found.means.get((label, start))) is not None and mean.num_seeds
    }
    if len(set(baselines.values())) == 1 and (len(baselines) > 1 or len(spent) == 1):
        baselines = {"": next(iter(baselines.values()))}
    return [*points, *((label, start, 0.0, mean) for label, (start, mean) in baselines.items())]


def _errorbar(
    axes: Axes, points: Sequence[tuple[float, Interval]], look: Look, key: tuple[str, str]
) -> None:
    """Draws the points of one (method, start) with their intervals, joined by a line."""
    label, start = key
    ours = start == "pretrained"
    ends = [(mean.mean, mean.low, mean.high) for _, mean in points]
    axes.errorbar(
        [x for x, _ in points],
        [mean for mean, _, _ in ends],
        yerr=(
            [0.0 if low is None else mean - low for mean, low, _ in ends],
            [0.0 if high is None else high - mean for mean, _, high in ends],
        ),
        color=look.colour,
        marker=look.marker,
        markerfacecolor=look.colour if ours else "none",
        linestyle="-" if ours else DASHED,
        linewidth=1.6 if ours else 1.1,
        markersize=5.5,
        elinewidth=1.0,
        capsize=2.5,
        label=in_legend(label) if ours else "",
    )


def _single_seeds(
    axes: Axes, verdicts: Iterable[Verdicts], look: Look, start: str, shift: float
) -> None:
    """Marks every seed faintly, where there is room since one method stands alone."""
    for found in verdicts:
        for starts in found.row.values.values():
            for value in starts.get(start, {}).values():
                x = shift * _fraction(found.row)
                axes.plot(x, value, look.marker, color=look.colour, markersize=3, alpha=0.35)


def _focus(axes: Axes, estimates: Iterable[Interval], metric: str) -> None:
    """Lets means set the scale: the intervals of two or three seeds can dwarf all differences.

    An interval that is much wider than the means lie apart runs off the plot.
    """
    shown = list(estimates)
    means = [one.mean for one in shown]
    room = max(max(means) - min(means), _LEAST_ROOM * max(abs(mean) for mean in means))
    lows = [one.mean if one.low is None else one.low for one in shown]
    highs = [one.mean if one.high is None else one.high for one in shown]
    low, high = max(min(lows), min(means) - room), min(max(highs), max(means) + room)
    if words.is_share(metric):
        low, high = max(low, 0.0), min(high, 1.0)
    margin = 0.06 * (high - low or room or 1.0)
    axes.set_ylim(low - margin, high + margin)


def chosen_layers(outcomes: Iterable[Outcome], label: str, start: str, row: Row) -> list[int]:
    """The layers that development images chose, where all but the layer agrees.

    Args:
        outcomes: of the runs, which name the layers.
        label: of a method; "" for any.
        start: of its encoder.
        row: of one layer.
    """
    names = [name for name in row.protocol if name != "layer"]
    return sorted(
        {
            result["chosen"]["layer"]
            for outcome in outcomes
            if label in ("", outcome.cell.method)
            for result in outcome.results
            if result["evaluator"] == row.evaluator
            and result["metric"] == row.metric
            and result["init"] == start
            and "layer" in result.get("chosen", {})
            and all(result["protocol"].get(name) == row.protocol[name] for name in names)
        }
    )


def _line_name(label: str, start: str) -> str:
    return label if start == "pretrained" else f"{label} {BASELINES[start]}".strip()


def _fraction(row: Row) -> float:
    fraction = row.protocol["label_fraction"]
    assert isinstance(fraction, int | float)
    return fraction


def _tick(row: Row) -> str:
    fraction, number = words.share(_fraction(row)), row.protocol.get("num_labels")
    return f"{fraction}\n{words.count(number)}" if isinstance(number, int) else fraction


def _setting(name: str, value: object) -> str:
    if name == "label_fraction" and isinstance(value, int | float):
        return f"{words.share(value)} of the labels"
    return worded({name: value}, [name])


def _ends(points: Sequence[tuple[float, Interval]], metric: str, over: str = "") -> str:
    ends = dict.fromkeys([points[0], points[-1]])
    return ", ".join(
        f"{words.number(mean.mean, metric)} at "
        + (f"{over} {x}" if over else f"{words.share(x)} of the labels")
        for x, mean in ends
    )


def _unit(largest: float, unit: str) -> tuple[float, str]:
    """How costs are written on an axis: what they are divided by, and what of."""
    if unit == "s":
        spans = ((7200, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))
        return next((factor, name) for least, factor, name in spans if largest >= least)
    thousands = min(6, int(math.log10(max(largest, 1.0)) / 3))
    return 1000.0**thousands, f"{('', 'k', 'M', 'G', 'T', 'P', 'E')[thousands]}FLOPs"


def _cost(cost: float, unit: str) -> str:
    if cost == 0:
        return "0"
    return words.duration(cost) if unit == "s" else words.magnitude(cost, unit)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
