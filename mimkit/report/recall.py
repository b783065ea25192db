"""Lines that go with a number, such as precision against recall: all methods in one plot."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.ticker import FuncFormatter

from mimkit import words
from mimkit.report.findings import Study
from mimkit.report.looks import DASHED, Chart, Look, in_legend, legend
from mimkit.report.parts import Group, groups
from mimkit.report.svg import Plot
from mimkit.report.wording import CALLED


def curve_charts(study: Study, styles: Mapping[str, Look]) -> list[Chart]:
    """Draws a chart for every curve that goes with an evaluation's numbers.

    Args:
        study: whose results are shown.
        styles: of the methods.
    """
    charts = []
    for number, group in enumerate(groups(study, "curves")):
        names = dict.fromkeys(name for of in group.found.values() for seed in of for name in seed)
        charts += [_chart(f"{number} {name}", name, group, styles) for name in names]
    return charts


def _chart(key: str, name: str, group: Group, styles: Mapping[str, Look]) -> Chart:
    title = f"{CALLED.get(group.evaluator, group.evaluator.replace('_', ' '))}: {name}"
    title = f"{title[:1].upper()}{title[1:]} against recall"
    title += group.told
    said = []
    with (plot := Plot(4.8, 3.3)) as axes:
        for (label, start), seeds in group.found.items():
            lines = [one[name] for one in seeds if name in one]
            if not lines:
                continue
            mean = [statistics.fmean(values) for values in zip(*lines, strict=True)]
            ours, look = start == "pretrained", styles[label]
            axes.plot(
                [place / (len(mean) - 1) for place in range(len(mean))],
                mean,
                color=look.colour,
                linestyle="-" if ours else DASHED,
                linewidth=1.6 if ours else 1.1,
                label=in_legend(label) if ours else "",
            )
            area = words.number(_area(mean), "ap")
            said.append(f"{label}{'' if ours else f' ({start})'}: {area} below the line")
        axes.set_xlabel("recall")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        percent = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        legend(axes, (start for _, start in group.found))
        description = f"{title}. {'. '.join(said)}. Means over seeds."
        return Chart(title, description, plot.svg(f"curve {key} {group.evaluator}"))


def _area(values: Sequence[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)
