"""What each layer of an encoder holds: the rows of a probe of all layers, as chart and table."""

from collections.abc import Mapping
from dataclasses import dataclass

from mimkit.report.charts import chosen_layers, layer_chart
from mimkit.report.findings import Study, Verdicts
from mimkit.report.looks import Chart, Look
from mimkit.report.wording import is_layer, key_of, name_of


@dataclass(frozen=True)
class Line:
    """One method from one start.

    Args:
        label: of the method.
        start: of its encoder.
        chosen: the layers that were best on development images.
    """

    label: str
    start: str
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Layers:
    """One metric over the layers.

    Args:
        title: what was measured, and how.
        chart: None of a single layer.
        verdicts: rows that only the layer tells apart.
        lines: all methods and starts that were measured.
    """

    title: str
    chart: Chart | None
    verdicts: tuple[Verdicts, ...]
    lines: tuple[Line, ...]


def layers(study: Study, styles: Mapping[str, Look]) -> list[Layers]:
    """Gathers the rows that name a layer, one record for each protocol but for the layer."""
    groups: dict[tuple[str, str], list[Verdicts]] = {}
    for found in study.verdicts:
        if is_layer(found.row):
            rest = {k: v for k, v in found.row.protocol.items() if k not in ("layer", "num_layers")}
            name = name_of(found.row.evaluator, found.row.metric)
            groups.setdefault((name, key_of(rest)), []).append(found)
    return [_layers(group, study, styles) for group in groups.values()]


def _layers(group: list[Verdicts], study: Study, styles: Mapping[str, Look]) -> Layers:
    row = group[0].row
    chart = layer_chart(group, study.outcomes, styles)
    keys = dict.fromkeys(key for found in group for key in found.means)
    lines = [
        Line(label, start, tuple(chosen_layers(study.outcomes, label, start, row)))
        for label, start in keys
    ]
    return Layers(chart.title, chart if len(group) > 1 else None, tuple(group), tuple(lines))
