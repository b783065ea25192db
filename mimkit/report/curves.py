"""The charts of a comparison that show pre-training as it went."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes

from mimkit import words
from mimkit.report.charts import Look, in_legend, legend, name_of
from mimkit.report.plots import (
    DASHES,
    Chart,
    Curve,
    format_counts,
    format_values,
    guesses,
    logged,
    thinned,
)
from mimkit.report.svg import FIRST, INK, SECOND, Plot

MAX_POINTS: Final = 2_000
"""Of all lines of a training chart together, so that many seeds do not fill the page."""
Log = Sequence[Mapping[str, float]]


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
    what = "loss" if kind == "loss" else rest.replace("/", " ").replace("_", " ")
    title = f"{label}: {what}"
    described = []
    with (plot := Plot(3.4, 2.4)) as axes:
        for key, side, colour in (
            (name, "training", FIRST),
            (f"heldout/{name}", "held-out", SECOND),
        ):
            curves = [curves[key] for curves in runs.values() if key in curves]
            if not curves:
                continue
            described += _draw_seeds(axes, curves, name, label=side, colour=colour)
        found = {
            text: value for curves in runs.values() for text, value in guesses(name, curves).items()
        }
        for (guess, height), dashes in zip(found.items(), DASHES, strict=False):
            axes.axhline(height, color=INK, linestyle=(0, dashes), linewidth=1.2, label=guess)
            described.append(f"{guess} is {words.number(height, name)}")
        legend(axes, columns=2)
        axes.set_xlabel("images seen")
        format_counts(axes)
        format_values(axes, name)
        description = f"{title} over the images seen, {len(runs)} seeds: {', '.join(described)}."
        return Chart(title, description, plot.svg(f"own {title}"))


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
    most = max(20, MAX_POINTS // (len(curves) + 1))
    few = {"marker": marker, "markersize": 3.5}
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*thinned(curve, most), color=colour, linewidth=0.8, alpha=0.35)
    xs, ys = thinned(_mean(curves), most)
    axes.plot(xs, ys, color=colour, label=in_legend(label), **(few if len(xs) < 40 else {}))  # type: ignore[arg-type]
    return [f"{label} ends at {words.number(ys[-1], name)}"]


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
