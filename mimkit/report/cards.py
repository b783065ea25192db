"""What was prepared before training, as small cards: cost, facts, users, and a picture."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mimkit import words
from mimkit.report.findings import Outcome
from mimkit.report.wording import key_of

PREFIX: Final = "prepared_"
"""The picture of target ``codes`` is ``pictures/prepared_codes.png``."""


@dataclass
class Card:
    """Something that was prepared once, such as a tokenizer, and who uses it.

    Args:
        title: what was prepared.
        seconds: how long it took.
        cached: whether every run found it in the cache.
        facts: names and values, in words.
        picture: file of its picture, or None.
        targets: that needed it.
        users: method label to seeds.
    """

    title: str
    seconds: float
    cached: bool
    facts: tuple[tuple[str, str], ...]
    picture: Path | None
    targets: list[str] = field(default_factory=list)
    users: dict[str, list[int]] = field(default_factory=dict)

    @property
    def cost(self) -> str:
        """How long it took, and whether that was now."""
        return cost(self.seconds, self.cached)

    @property
    def used_by(self) -> str:
        """Its users in words."""
        return "; ".join(
            f"{label} ({_plural('seed', seeds)} {', '.join(map(str, seeds))})"
            for label, seeds in self.users.items()
        )


def cards(told: Iterable[Outcome]) -> list[Card]:
    """Makes one card for each preparation in the ledgers, once for all runs that share it."""
    found: dict[tuple[str, str, str], Card] = {}
    for outcome in told:
        for target, prepared in outcome.ledger.get("prepared", {}).items():
            picture = outcome.folder / "pictures" / f"{PREFIX}{target}.png"
            content = picture.read_bytes() if picture.is_file() else b""
            facts = prepared["facts"]
            key = prepared["title"], key_of(facts), hashlib.sha256(content).hexdigest()
            worded = ((name.replace("_", " "), words.fact(facts[name], name)) for name in facts)
            card = found.setdefault(
                key,
                Card(
                    title=prepared["title"],
                    seconds=prepared["seconds"],
                    cached=True,
                    facts=tuple(worded),
                    picture=picture if content else None,
                ),
            )
            card.cached &= prepared["cached"]
            if target not in card.targets:
                card.targets.append(target)
            seeds = card.users.setdefault(outcome.cell.method, [])
            if outcome.cell.seed not in seeds:
                seeds.append(outcome.cell.seed)
    return list(found.values())


def cost(seconds: float, cached: bool) -> str:
    """Words for what a preparation took; from a cache it costs nothing now, but it did once."""
    return words.duration(seconds) + (", found in the cache" if cached else "")


def _plural(noun: str, items: Sequence[object]) -> str:
    return noun if len(items) == 1 else f"{noun}s"
