"""Counter-based random numbers: each is a pure function of where it stands, so no state exists."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, stream: int, index: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Gives ``count`` numbers in [0, 1) for every index, a function of the four arguments only.

    Neither the other indices of the call nor ``count`` has influence on a number: column ``j`` of
    index ``i`` is the same in every batch. Streams keep independent uses of one seed apart.

    Shape: index (n,) int64, result (n, count) float64.
    Source: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, doi 10.1145/2660193.2660195): each row
        is that generator, started at a hash of (seed, stream, index).
    """
    key = _chain(_chain(_word(0), _word(seed)), _word(stream))
    start = _chain(key, index.astype(np.uint64))  # (n,)
    step = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN  # (count,)
    words = _finalise(start[:, None] + step)  # (n, count)
    # The upper 53 bits fill a float64's mantissa, so 1.0 itself is never reached.
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _word(value: int) -> NDArray[np.uint64]:
    # One-element arrays, not scalars: numpy warns when a scalar wraps around.
    return np.array([value % 2**64], dtype=np.uint64)


def _chain(state: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The golden ratio keeps the all-zero words away from 0, where the finaliser stands still.
    return _finalise((state ^ word) + _GOLDEN)


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
