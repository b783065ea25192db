"""What was prepared before training, as small cards: cost, facts, and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimkit import words
from mimkit.report.embed import Shown

PREFIX = "prepared_"
"""The picture of target ``codes`` is ``pictures/prepared_codes.png``."""


@dataclass(frozen=True)
class Card:
    """One preparation, as the page shows it.

    Args:
        target: whose.
        title: what was prepared.
        cost: how long it took, and whether that was now.
        facts: names and values, in words.
        picture: None where there is none, or where the page could not hold it.
    """

    target: str
    title: str
    cost: str
    facts: tuple[tuple[str, str], ...]
    picture: Shown | None


def cards(ledger: Mapping[str, Any], pictures: Sequence[Shown]) -> list[Card]:
    """Makes one card for each preparation of the ledger, with its picture if there is one."""
    by_name = {picture.name: picture for picture in pictures}
    return [
        Card(
            target,
            prepared["title"],
            cost(prepared["seconds"], prepared["cached"]),
            tuple((k.replace("_", " "), words.fact(v, k)) for k, v in prepared["facts"].items()),
            by_name.get(f"{PREFIX}{target}"),
        )
        for target, prepared in ledger.get("prepared", {}).items()
    ]


def cost(seconds: float, cached: bool) -> str:
    """Words for what a preparation took; from a cache it costs nothing now, but it did once."""
    return words.duration(seconds) + (", found in the cache" if cached else "")
