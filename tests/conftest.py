"""Fixtures of several test files."""

from dataclasses import dataclass

import pytest

from mimkit.recipe import registry


@dataclass(frozen=True)
class FakeDistribution:
    name: str
    version: str


@dataclass(frozen=True)
class FakePoint:
    name: str
    value: str
    dist: FakeDistribution


@pytest.fixture
def register(monkeypatch):
    """Replaces what is installed: ``register(kind, name, class or "module:name")`` adds a part."""
    points = {}
    monkeypatch.setattr(registry, "_entry_points", lambda group: points.get(group, []))

    def add(kind, name, value, *, distribution="mimkit-tiny", version="1.0"):
        path = value if isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"
        point = FakePoint(name, path, FakeDistribution(distribution, version))
        points.setdefault(f"mimkit.{kind}", []).append(point)

    return add
