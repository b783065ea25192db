"""Choosing a learning rate with no more labels than a number says it has seen."""

from collections.abc import Callable, Sequence

from torch import Tensor

from mimkit.evaluate.base import Plain
from mimkit.evaluate.fractions import development_split
from mimkit.evaluate.score import Score


def choose_rate(
    lrs: Sequence[float],
    labels: Tensor,
    subset: Tensor,
    seed: int,
    measure: Callable[[float, Tensor, Tensor], Score],
) -> float:
    """Finds the learning rate that is best on a development split of the labelled images.

    Args:
        lrs: to choose from; a single one is taken as it is.
        labels: (N,) int64, of the whole split.
        subset: (n,) int64, the labelled images: no other is trained or judged on.
        seed: of the subset, and of its development split.
        measure: trains at a rate on some of them and judges the others.
    """
    if len(lrs) == 1:
        return lrs[0]
    fitted, development = development_split(labels, subset, seed)
    scores = {lr: measure(lr, fitted, development) for lr in lrs}
    # Few development images often tie: then the smaller loss decides.
    return max(lrs, key=lambda lr: (scores[lr].accuracy, -scores[lr].loss))


def named(lrs: Sequence[float]) -> dict[str, Plain]:
    """Names the search in a protocol, so that numbers of another search are kept apart."""
    found: dict[str, Plain] = {"lrs": ", ".join(f"{lr:g}" for lr in lrs)}
    return found if len(lrs) == 1 else {**found, "searched": "by each seed's own labels"}
