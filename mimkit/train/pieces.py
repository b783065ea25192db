"""Into how many pieces a batch is cut, so that a step fits into the memory of the device."""

from collections.abc import Callable
from typing import Final

from mimkit.errors import TrainingError, in_one_line, memory_is_full

_FIRST: Final = 8
"""Images of the first piece that is tried."""
_GROWTH: Final = 4
"""So many times larger than the last may the next one be, lest a wrong outlook costs much."""


def largest_piece(peak: Callable[[int], int], share: int, room: int) -> int | None:
    """Finds the largest piece whose step fits, by steps on pieces that grow.

    From the last two peaks follows which size is worth a try; what fits is only what was tried, or
    is smaller than that.

    >>> largest_piece(lambda size: 500 + 70 * size, 2048, 60_000)
    512

    Args:
        peak: does a step on pieces of so many images, and returns the most bytes in use; raises
            if memory is full.
        share: images of a step in one process; a piece divides it.
        room: bytes that may be in use.

    Returns: images of a piece; None if not even one fits.
    """
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    peaks: dict[int, int] = {}
    refused = share + 1
    size = min(_FIRST, share)
    while size:
        used = _tried(peak, size)
        if used is None or used > room:
            refused = size
        else:
            peaks[size] = used
        size = _next(peaks, divisors, refused, room)
    if not peaks:
        return None
    return max(size for size in divisors if size <= max(peaks))


def _tried(peak: Callable[[int], int], size: int) -> int | None:
    try:
        return peak(size)
    except (RuntimeError, MemoryError) as error:
        if not memory_is_full(error):
            raise
        return None


def _next(peaks: dict[int, int], divisors: list[int], refused: int, room: int) -> int:
    """The size to try next, 0 for none."""
    if not peaks:
        return refused // 2
    *_, last = sorted(peaks)
    if len(peaks) == 1 and 2 * last < refused:
        return 2 * last  # two peaks tell what comes with the images, and what is there anyway
    worthwhile = [d for d in divisors if last < d < refused and _outlook(peaks, d) <= room]
    near = [d for d in worthwhile if d <= _GROWTH * last]
    return max(near, default=min(worthwhile, default=0))


def _outlook(peaks: dict[int, int], size: int) -> float:
    """The straight line through the last two peaks."""
    *before, last = sorted(peaks)
    if not before:
        return peaks[last] * size / last
    slope = (peaks[last] - peaks[before[-1]]) / (last - before[-1])
    return peaks[last] + slope * (size - last)


def more_pieces(share: int, accumulate: int) -> int | None:
    """The next number of pieces that cuts a share evenly and at least halves them, if any."""
    finer = [n for n in range(2 * accumulate, share + 1) if share % n == 0]
    return min(finer, default=None)


def no_memory(
    where: str, error: BaseException, *, share: int, accumulate: int, after: str = ""
) -> TrainingError:
    """Returns the error of a step that does not fit, which names the key to set.

    Args:
        where: such as "step 12".
        error: what was raised.
        share: images of a step in one process.
        accumulate: pieces into which it was cut.
        after: what else there is to say.
    """
    finer = more_pieces(share, accumulate)
    now = f"pieces of {share // accumulate} images"
    if finer is None:
        advice = "there is nothing left to cut: a smaller encoder or image_size would need less"
    else:
        advice = (
            f"set train.accumulate={finer} for pieces of {share // finer}; a smaller encoder or "
            "image_size needs less too"
        )
    return TrainingError(
        f"{where}: memory is full with train.accumulate={accumulate}, {now} "
        f"({in_one_line(error)}). To mend it, {advice}. Several processes with "
        f"train.parallel=fsdp share one model out.{after and ' '}{after}"
    )
