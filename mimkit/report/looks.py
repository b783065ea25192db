"""What all charts share: a look for each method, the legend, how axes are written."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mimkit import words
from mimkit.report.svg import INK, SERIES
from mimkit.report.wording import BASELINES

DASHED: Final = (0, (4, 2.5))
"""Of baselines."""
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")


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


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Gives each method a colour and a marker; pairs of both repeat after 42."""
    return {
        label: Look(SERIES[number % len(SERIES)], _MARKERS[number % len(_MARKERS)])
        for number, label in enumerate(labels)
    }


def legend(axes: Axes, starts: Iterable[str] = (), columns: int = 4) -> None:
    """Above the plot, where it hides nothing: every method, and each kind of baseline once."""
    handles, names = axes.get_legend_handles_labels()
    for start in dict.fromkeys(starts):
        if start != "pretrained":
            hollow: Any = {"mfc": "none", "mec": INK, "markersize": 5.5}
            handles.append(Line2D([], [], color=INK, marker="o", linestyle=DASHED, **hollow))
            names.append(BASELINES[start])
    axes.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=min(len(names), columns),
        fontsize=9,
        columnspacing=1.2,
        handlelength=1.8,
        borderpad=0.2,
    )


def in_legend(label: str) -> str:
    """A label that matplotlib shows; one that begins with an underscore it would hide."""
    return f"\u2060{label}" if label.startswith("_") else label


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
