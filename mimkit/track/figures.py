"""The numbers of a finished run, by the names under which trackers show them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_FIGURES: Final = ("images_seen", "images_per_second", "peak_memory_bytes", "flops_per_image")
_GROUPS: Final = ("seconds", "parameters")


def of_results(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Names the means of ``results.json``.

    Where one metric was measured by several protocols, the name says in what they differ.

    >>> one = {"evaluator": "knn", "metric": "accuracy", "init": "pretrained", "mean": 0.5}
    >>> of_results([{**one, "protocol": {"k": 1}}])
    {'results/knn/accuracy/pretrained': 0.5}
    >>> list(of_results([{**one, "protocol": {"k": k, "t": 2}} for k in (1, 9)]))
    ['results/knn/accuracy/k 1/pretrained', 'results/knn/accuracy/k 9/pretrained']
    """
    protocols: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in summaries:
        protocols.setdefault((one["evaluator"], one["metric"]), []).append(one["protocol"])
    named = {}
    for one in summaries:
        evaluator, metric, protocol = one["evaluator"], one["metric"], one["protocol"]
        others = protocols[evaluator, metric]
        told = [
            f"{name} {value}"
            for name, value in protocol.items()
            if any(other.get(name) != value for other in others)
        ]
        named["/".join(("results", evaluator, metric, *told, one["init"]))] = one["mean"]
    return named


def of_ledger(ledger: Mapping[str, Any]) -> dict[str, float]:
    """Names the main figures of ``ledger.json``.

    >>> of_ledger({"images_seen": 96, "seconds": {"train": 1.5}, "device": "CPU"})
    {'ledger/images_seen': 96, 'ledger/seconds/train': 1.5}
    """
    return dict(_figures(ledger))


def _figures(ledger: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in _FIGURES:
        if ledger.get(name) is not None:
            yield f"ledger/{name}", ledger[name]
    for group in _GROUPS:
        for name, value in ledger.get(group, {}).items():
            yield f"ledger/{group}/{name}", value
