"""What a number is the mean of, such as the IoU of each class: all methods on one line each."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from matplotlib.ticker import FuncFormatter

from mimkit import words
from mimkit.report.findings import Study
from mimkit.report.looks import Chart, Look, in_legend, legend
from mimkit.report.svg import Plot
from mimkit.report.wording import name_of, varies, worded

_MOST: Final = 30
"""Parts that are shown; of more, those in which the numbers lie farthest apart."""
_LABELS: Final = ("label_fraction", "num_labels")
_Start = tuple[str, str]
"""Label of a method, and how its weights came about."""


@dataclass
class Group:
    """Results that differ in method, start and seed alone."""

    evaluator: str
    metric: str
    protocol: Mapping[str, Any]
    found: dict[_Start, list[Mapping[str, Any]]] = field(default_factory=dict)
    detail: str = ""

    @property
    def told(self) -> str:
        """What ends a title: the share of labels, and what sets it apart from others."""
        fraction = self.protocol.get("label_fraction")
        few = isinstance(fraction, int | float) and fraction < 1
        share = f", at {words.share(fraction)} of the labels" if few else ""  # type: ignore[arg-type]
        return share + (f" ({self.detail})" if self.detail else "")

    def means(self) -> dict[_Start, dict[str, float]]:
        """The mean of each part over seeds."""
        return {
            start: {
                name: statistics.fmean(one[name] for one in seeds if name in one)
                for name in dict.fromkeys(name for one in seeds for name in one)
            }
            for start, seeds in self.found.items()
        }


def part_charts(study: Study, styles: Mapping[str, Look]) -> list[Chart]:
    """Draws a chart for every evaluation whose numbers are means of named parts.

    Args:
        study: whose results are shown.
        styles: of the methods.
    """
    return [_chart(number, group, styles) for number, group in enumerate(groups(study, "parts"))]


def groups(study: Study, kept: str) -> list[Group]:
    """Gathers what results have under one name, those that belong together in one group.

    Args:
        study: whose results.
        kept: "parts" or "curves" (`mimkit.evaluate.base.Result`).
    """
    gathered: dict[str, Group] = {}
    for outcome in study.outcomes:
        for result in outcome.results:
            if held := result.get(kept):
                protocol = result["protocol"]
                key = json.dumps([result["evaluator"], result["metric"], protocol], sort_keys=True)
                group = gathered.setdefault(
                    key, Group(result["evaluator"], result["metric"], protocol)
                )
                start = outcome.cell.method, result["init"]
                group.found.setdefault(start, []).append(held)
    every = list(gathered.values())
    for group in every:
        alike = [
            other.protocol
            for other in every
            if (other.evaluator, other.metric) == (group.evaluator, group.metric)
        ]
        differ = [name for name in group.protocol if varies(alike, name) and name not in _LABELS]
        group.detail = worded(group.protocol, differ)
    return every


def _chart(number: int, group: Group, styles: Mapping[str, Look]) -> Chart:
    means, metric = group.means(), group.metric
    names = _shown([*means.values()])
    total = len(dict.fromkeys(name for of_start in means.values() for name in of_start))
    title = f"{name_of(group.evaluator, metric)}, what it is the mean of"
    title += group.told
    if total > len(names):
        title += f": of {total}, the {len(names)} that differ most"
    said = []
    with (plot := Plot(6.4, 0.9 + 0.3 * len(names))) as axes:
        for place, ((label, start), parts) in enumerate(means.items()):
            ours, look = start == "pretrained", styles[label]
            # Above and below each other, so that none hides another.
            shift = 0.5 * ((place + 0.5) / len(means) - 0.5)
            rows = [row for row, name in enumerate(names) if name in parts]
            axes.plot(
                [parts[names[row]] for row in rows],
                [row + shift for row in rows],
                look.marker,
                color=look.colour,
                markerfacecolor=look.colour if ours else "none",
                markersize=5.5,
                label=in_legend(label) if ours else "",
            )
            numbers = (
                f"{name} {words.number(parts[name], metric)}" for name in names if name in parts
            )
            said.append(f"{label}{'' if ours else f' ({start})'}: {', '.join(numbers)}")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=True, axis="x")
        axes.set_xlim(left=0)
        if words.is_share(metric):
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        legend(axes, (start for _, start in means))
        description = f"{title}. {'. '.join(said)}."
        return Chart(title, description, plot.svg(f"parts {number} {group.evaluator}"))


def _shown(means: Sequence[Mapping[str, float]]) -> list[str]:
    """Names the parts that are drawn, in their own order."""
    names = list(dict.fromkeys(name for of_start in means for name in of_start))

    def apart(name: str) -> float:
        values = [of_start[name] for of_start in means if name in of_start]
        return max(values) - min(values)

    chosen = set(sorted(names, key=apart, reverse=True)[:_MOST])
    return [name for name in names if name in chosen]
