"""How numbers are written for people: one way, everywhere in the report."""

import math

NARROW = "\u202f"
_SHORT = 0.1
"""Seconds below which nobody cares how many there are."""
MINUS = "\u2212"
MISSING = "\u2013"
GUESSES = {"chance": "chance", "majority": "most frequent class"}
"""Metrics that say what guessing reaches, and how they are called; they stand beside accuracy."""
_OVERLAPS = {"iou", "miou", "ap", "ap50", "ap75"}
EVEN_LOSS = "even"
"""The metric that says what the loss of even odds is; it stands beside the loss."""


def is_guess(metric: str) -> bool:
    """True for what is only there to compare an accuracy or a loss with."""
    return metric.rpartition("/")[2] in (*GUESSES, EVEN_LOSS)


def is_share(metric: str) -> bool:
    """True for metrics in [0, 1] that people read in percent."""
    name = metric.rpartition("/")[2]
    return is_mean_of_images(metric) or bool(_OVERLAPS & set(name.split("_")))


def is_mean_of_images(metric: str) -> bool:
    """True for shares of the judged images."""
    return any(word in metric.rpartition("/")[2] for word in ("accuracy", *GUESSES))


def number(value: float | None, metric: str) -> str:
    """A metric's value: percent with one decimal, or three significant digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    return _decimal(value, 1) + f"{NARROW}%" if is_share(metric) else _significant(value)


def spread(value: float | None, metric: str) -> str:
    """A standard deviation, without the unit that stands before it."""
    if value is None or not math.isfinite(value):
        return MISSING
    return _decimal(value, 1) if is_share(metric) else _significant(value)


def signed(value: float | None, metric: str) -> str:
    """A difference: percentage points, or three significant digits, always with its sign."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = spread(abs(value), metric)
    return f"{MINUS if value < 0 else '+'}{text}"


def fact(value: str | float, name: str) -> str:
    """A value that a part reports of itself: text as it is, whole numbers whole."""
    if isinstance(value, str):
        return value
    return count(value) if isinstance(value, int) else number(value, name)


def share(fraction: float) -> str:
    """A fraction of the labels, as exact as it was asked for."""
    return f"{100 * fraction:.4g}{NARROW}%"


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def magnitude(value: float, unit: str = "") -> str:
    """A large number with a metric prefix, such as ``8.5 M`` or ``12.3 GFLOP``."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{NARROW}{prefix}{unit}"
    return f"{value:.3g}{NARROW}{unit}".strip()


def memory(num_bytes: float) -> str:
    """An amount of memory in binary units."""
    gibibytes = num_bytes / 2**30
    if gibibytes >= 1:
        return f"{gibibytes:.1f}{NARROW}GiB"
    return f"{num_bytes / 2**20:.0f}{NARROW}MiB"


def duration(seconds: float, *, exact: bool = False) -> str:
    """A time span in its one or two largest units.

    Args:
        seconds: how long; whole ones are written as such.
        exact: enough to compare it with others: in seconds up to two hours.
    """
    if 0 < seconds < _SHORT:
        return f"under {_SHORT}{NARROW}s"
    if seconds < 90:
        return f"{seconds:.3g}{NARROW}s"
    if exact and seconds < 7200:
        return f"{count(seconds)}{NARROW}s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes}{NARROW}min"
    if minutes >= 48 * 60:
        return f"{seconds / 86400:.3g}{NARROW}days"
    return f"{minutes // 60}{NARROW}h {minutes % 60:02d}{NARROW}min"


def about(seconds: float) -> str:
    """An estimated time span, as `duration` writes it.

    >>> about(0.02), about(360)
    ('under 0.1\u202fs', 'about 6\u202fmin')
    """
    return f"{'about ' * (not 0 < seconds < _SHORT)}{duration(seconds)}"


def _decimal(value: float, digits: int) -> str:
    return f"{100 * value:.{digits}f}".replace("-", MINUS)


def _significant(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", MINUS)
