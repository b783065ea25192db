"""What was prepared before training, as small cards: cost, facts, and a picture."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimkit import words
from mimkit.report.embed import Shown
from mimkit.report.findings import Outcome
from mimkit.report.wording import key_of

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


@dataclass
class Preparation:
    """Something that was prepared once, such as a tokenizer, and who uses it.

    Args:
        target: name of the target that needed it.
        ledger: what the ledger says of it.
        picture: file of its picture, or None.
        users: method label to seeds.
    """

    target: str
    ledger: dict[str, Any]
    picture: Path | None
    users: dict[str, list[int]] = field(default_factory=dict)

    def card(self, pictures: Mapping[Path, Shown]) -> Card:
        """Makes its card, with the picture if the page could hold it."""
        shown = pictures.get(self.picture) if self.picture is not None else None
        return cards({"prepared": {self.target: self.ledger}}, [shown] if shown else [])[0]

    @property
    def used_by(self) -> str:
        """Its users in words."""
        return "; ".join(
            f"{label} ({_plural('seed', seeds)} {', '.join(map(str, seeds))})"
            for label, seeds in self.users.items()
        )


def preparations(told: Iterable[Outcome]) -> list[Preparation]:
    """What was prepared, once for all runs that share it."""
    found: dict[tuple[str, str, str], Preparation] = {}
    for outcome in told:
        for target, ledger in outcome.ledger.get("prepared", {}).items():
            picture = outcome.folder / "pictures" / f"{PREFIX}{target}.png"
            content = picture.read_bytes() if picture.is_file() else b""
            key = ledger["title"], key_of(ledger["facts"]), hashlib.sha256(content).hexdigest()
            held = found.setdefault(
                key, Preparation(target, dict(ledger), picture if content else None)
            )
            held.ledger["cached"] &= ledger["cached"]
            held.users.setdefault(outcome.cell.method, []).append(outcome.cell.seed)
    return list(found.values())


def _plural(noun: str, items: Sequence[object]) -> str:
    return noun if len(items) == 1 else f"{noun}s"
