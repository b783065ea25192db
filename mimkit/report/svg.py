"""Figures as SVG that stands in the page and takes the page's colours."""

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID, FIRST, SECOND = "#000001", "#000002", "#000003", "#000004"
"""Stand-ins for the page's variables, so that one plot serves light, dark and print."""
SERIES = "#000005", "#000006", "#000007", "#000008", "#000009", "#00000a"
"""The same for things of one kind that stand in one plot."""

_VARIABLES = {
    INK: "var(--muted)",
    GRID: "var(--line)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "mimkit",
    "font.size": 10,
    "text.parse_math": False,  # names come from recipes: a dollar sign is a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


class Plot:
    """One pair of axes in the report's look, for use in ``with``; no global state remains.

    Args:
        width: in inches of 72 pixels.
        height: the same.
    """

    def __init__(self, width: float, height: float) -> None:
        self.size = width, height
        self.context = rc_context(_SETTINGS)

    def __enter__(self) -> Axes:
        self.context.__enter__()
        self.figure = Figure(figsize=self.size, layout="constrained")
        return self.figure.add_subplot()

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(None, None, None)

    def svg(self, name: str) -> str:
        """Returns an ``<svg>`` element; call it before leaving ``with``.

        Args:
            name: unique on the page.
        """
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, variable)
        # Several plots share one page: their ids must differ.
        prefix = re.sub(r"\W+", "-", name)
        text = re.sub(r'\bid="', f'id="{prefix}-', text)
        text = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)
        # Inline SVG needs no namespaces, and its size is the page's matter.
        text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
        opening, rest = text.split(">", 1)
        opening = re.sub(r' (width|height|version)="[^"]*"', "", opening)
        return f'{opening} aria-hidden="true">{rest}'
