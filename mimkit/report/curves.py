"""Pre-training as it went: losses, tasks and evaluations over the images or steps."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from mimkit import words
from mimkit.report.looks import Chart, Look, format_counts, format_values, in_legend, legend
from mimkit.report.svg import FIRST, INK, SECOND, Plot
from mimkit.report.wording import name_of

MAX_POINTS: Final = 2_000
"""Of all lines of a training chart together, so that many seeds do not fill the page."""
DASHES: Final = (5, 4), (1, 3)
"""Of the lines that show what guessing reaches."""
LOG_FROM: Final = 30
"""Gradient norms that differ by more than this factor are shown on a logarithmic axis."""
KINDS: Final = ("loss", "metric", "evaluation", "lr", "grad_norm")
"""Kinds of curves of one run, in the order in which they are shown."""
Log = Sequence[Mapping[str, float]]
Curve = tuple[list[float], list[float]]


def training_charts(
    logs: Mapping[str, Mapping[int, Log]], batch_sizes: Mapping[str, int]
) -> list[Chart]:
    """Plots the loss of each method, then how well each solves its own task, on its own axes.

    Args:
        logs: method label to seed to what the run has logged.
        batch_sizes: by method label; the charts count images, not steps.
    """
    found: dict[str, list[Chart]] = {"loss": [], "metric": []}
    for label, by_seed in logs.items():
        runs = {seed: _by_images(rows, batch_sizes[label]) for seed, rows in by_seed.items()}
        for name in _own_curves(runs.values()):
            found[name.partition("/")[0]].append(_own_chart(label, name, runs))
    return [*found["loss"], *found["metric"]]


def progress_charts(
    logs: Mapping[str, Mapping[int, Log]],
    batch_sizes: Mapping[str, int],
    styles: Mapping[str, Look],
) -> list[Chart]:
    """Plots evaluations that were made during pre-training, all methods in one chart."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    for label, by_seed in logs.items():
        for rows in by_seed.values():
            for name, curve in _by_images(rows, batch_sizes[label]).items():
                if _is_evaluation(name):
                    curves.setdefault(name, {}).setdefault(label, []).append(curve)
    return [_progress_chart(name, by_label, styles) for name, by_label in curves.items()]


def _own_curves(runs: Iterable[Mapping[str, Curve]]) -> list[str]:
    """The loss of a method, and the accuracies of its task.

    With several terms the loss is their weighted sum; each term is in the runs' own reports.
    """
    names = dict.fromkeys(name for curves in runs for name in curves)
    terms = [name for name in names if name.startswith("loss/") and name != "loss/total"]
    loss = terms if len(terms) == 1 else [name for name in names if name == "loss/total"]
    accuracies = [
        name
        for name in names
        if name.startswith("metric/") and words.is_share(name) and not words.is_guess(name)
    ]
    return [*loss, *accuracies]


def _own_chart(label: str, name: str, runs: Mapping[int, Mapping[str, Curve]]) -> Chart:
    kind, _, rest = name.partition("/")
    title = f"{label}: {'loss' if kind == 'loss' else rest.replace('/', ' ').replace('_', ' ')}"
    with (plot := Plot(3.4, 2.4)) as axes:
        described = _draw_task(axes, name, [*runs.values()])
        legend(axes, columns=2)
        axes.set_xlabel("images seen")
        over = f"{title} over the images seen, {len(runs)} seeds"
        return Chart(title, f"{over}: {', '.join(described)}.", plot.svg(f"own {title}"))


def run_charts(rows: Log) -> list[Chart]:
    """Plots all that one run has logged over its steps: also learning rate and gradient norm."""
    curves = logged(rows)
    names = dict.fromkeys(name.removeprefix("heldout/") for name in curves)
    terms = {name.split("/")[1] for name in names if name.startswith("loss/")} - {"total"}
    if len(terms) == 1:
        # The total is then the same curve times its weight.
        names.pop("loss/total", None)
    shown = [name for name in names if not words.is_guess(name) and name[:5] != "time/"]
    shown.sort(key=lambda name: KINDS.index(_kind(name)))
    return [_run_chart(name, curves, len(terms)) for name in shown]


def _run_chart(name: str, curves: Mapping[str, Curve], num_terms: int) -> Chart:
    kind = _kind(name)
    rest = name.rpartition("/")[2] if num_terms == 1 else name.removeprefix("metric/")
    title = {
        "loss": "Loss" if num_terms == 1 else f"Loss: {name.removeprefix('loss/')}",
        "metric": _capital(rest),
        "evaluation": name_of(*name.split("/", maxsplit=1)) if "/" in name else _capital(name),
        "lr": "Learning rate",
        "grad_norm": "Gradient norm before clipping",
    }[kind]
    with (plot := Plot(4.6, 2.7)) as axes:
        described = _draw_task(axes, name, [curves])
        if len(axes.lines) > 1:
            axes.legend(loc="best")
        if kind == "grad_norm" and max(curves[name][1]) > LOG_FROM * min(curves[name][1]) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda norm, _: f"{norm:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        return Chart(title, f"{title} over the steps: {', '.join(described)}.", plot.svg(name))


def _kind(name: str) -> str:
    first = name.split("/", maxsplit=1)[0]
    return first if first in KINDS else "evaluation"


def _capital(name: str) -> str:
    text = name.replace("_", " ").replace("/", " ")
    return text[:1].upper() + text[1:]


def _draw_task(axes: Axes, name: str, runs: Sequence[Mapping[str, Curve]]) -> list[str]:
    """Draws one quantity of all runs of a method, also on held-out images; says where it ends."""
    described = []
    training = "training" if _kind(name) in ("loss", "metric") else ""
    for key, side, colour in ((name, training, FIRST), (f"heldout/{name}", "held-out", SECOND)):
        curves = [curves[key] for curves in runs if key in curves]
        if curves:
            described += _draw_seeds(axes, curves, name, label=side, colour=colour)
    found = {text: value for curves in runs for text, value in guesses(name, curves).items()}
    for (guess, height), dashes in zip(found.items(), DASHES, strict=False):
        axes.axhline(height, color=INK, linestyle=(0, dashes), linewidth=1.2, label=guess)
        described.append(f"{guess} is {words.number(height, name)}")
    format_counts(axes)
    format_values(axes, name)
    return described


def _progress_chart(
    name: str, by_label: Mapping[str, Sequence[Curve]], styles: Mapping[str, Look]
) -> Chart:
    title = f"{name_of(*name.split('/', maxsplit=1))} during pre-training"
    described = []
    with (plot := Plot(4.8, 3.0)) as axes:
        for label, curves in by_label.items():
            look = styles[label]
            described += _draw_seeds(
                axes, curves, name, label=label, colour=look.colour, marker=look.marker
            )
        axes.set_xlabel("images seen")
        format_counts(axes)
        legend(axes)
        format_values(axes, name)
        description = f"{title}: {', '.join(described)}."
        return Chart(title, description, plot.svg(f"progress {name}"))


def _draw_seeds(
    axes: Axes, curves: Sequence[Curve], name: str, *, label: str, colour: str, marker: str = "o"
) -> list[str]:
    """Draws each seed faintly and their mean over it; says where the mean ends."""
    most = min(500, max(20, MAX_POINTS // (len(curves) + 1)))
    few = {"marker": marker, "markersize": 3.5}
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*thinned(curve, most), color=colour, linewidth=0.8, alpha=0.35)
    xs, ys = thinned(_mean(curves), most)
    axes.plot(xs, ys, color=colour, label=in_legend(label), **(few if len(xs) < 40 else {}))  # type: ignore[arg-type]
    return [f"{label} ends at {words.number(ys[-1], name)}".strip()]


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds, where all of them have logged."""
    by_seed = [dict(zip(*curve, strict=True)) for curve in curves]
    shared = sorted(set.intersection(*(set(values) for values in by_seed)))
    if not shared:
        return curves[0]
    return shared, [statistics.fmean(values[x] for values in by_seed) for x in shared]


def _by_images(rows: Log, batch_size: int) -> dict[str, Curve]:
    return {
        name: ([step * batch_size for step in steps], values)
        for name, (steps, values) in logged(rows).items()
    }


def _is_evaluation(name: str) -> bool:
    """True for what can be compared, not for a method's own task or its optimizer."""
    own = ("loss", "metric", "heldout", "lr", "grad_norm", "time")
    return name.partition("/")[0] not in own


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


def thinned(curve: Curve, max_points: int) -> Curve:
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
