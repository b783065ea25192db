import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from mimkit.errors import PluginError
from mimkit.recipe.options import describe, options, schema
from mimkit.recipe.registry import Entry

ENTRY = Entry("losses", "tiny", "mimkit-tiny", "1.0", "x:Y")


class Part:
    def __init__(
        self,
        geometry,
        *,
        ratio: float,
        depth: int = 3,
        mode: Literal["drop", "replace"] = "drop",
        scale: tuple[float, float] = (0, 1),
        sizes: tuple[int, ...] = (),
        names: list[str] | None = None,
        size: int | tuple[int, int] = 2,
        copy: bool = False,
        share: Annotated[float, Field(gt=0)] = 0.5,
    ):
        pass


def validated(**table):
    return schema(ENTRY, Part).model_validate_json(json.dumps(table)).model_dump()


def test_defaults_are_written_out_and_numbers_take_the_declared_type():
    options = validated(ratio=1)
    assert options == {
        "ratio": 1.0,
        "depth": 3,
        "mode": "drop",
        "scale": (0.0, 1.0),
        "sizes": (),
        "names": None,
        "size": 2,
        "copy": False,
        "share": 0.5,
    }
    assert isinstance(options["ratio"], float)
    assert isinstance(options["scale"][0], float)


def test_arrays_become_tuples_where_the_signature_says_so():
    options = validated(ratio=0.5, scale=[0.1, 1], sizes=[1, 2, 3], size=[4, 5], names=["a"])
    assert options["scale"] == (0.1, 1.0)
    assert options["sizes"] == (1, 2, 3)
    assert options["size"] == (4, 5)
    assert options["names"] == ["a"]


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"ratio": "0.5"},
        {"ratio": True},
        {"ratio": 1, "depth": 3.0},
        {"ratio": 1, "depth": True},
        {"ratio": 1, "mode": "dorp"},
        {"ratio": 1, "scale": [1]},
        {"ratio": 1, "copy": 1},
        {"ratio": 1, "share": 0},
        {"ratio": 1, "unknown": 0},
    ],
)
def test_nothing_is_converted_or_let_through(table):
    with pytest.raises(ValidationError):
        validated(**table)


def test_options_are_listed_in_the_order_of_the_signature():
    found = options(ENTRY, Part)
    assert [option.name for option in found][:3] == ["ratio", "depth", "mode"]
    assert found[0].default is ...
    assert found[1].default == 3


def broken(constructor):
    return type("Broken", (), {"__init__": constructor})


def no_type(self, geometry, *, depth=3): ...
def positional(self, geometry, depth: int = 3): ...
def hidden(self, geometry, **options): ...
def star(self, *args): ...
def nothing(self): ...
def optional(self, geometry=None): ...
def mutable(self, geometry, *, sizes: list[int] = []): ...  # noqa: B006
def wrong_default(self, geometry, *, depth: int = "three"): ...
def not_plain(self, geometry, *, activation: Any = None): ...
def bare(self, geometry, *, sizes: tuple = ()): ...
def taken(self, geometry, *, weight: float = 1.0): ...
def unknown_type(self, geometry, *, depth: "Unknown" = 3): ...  # noqa: F821


@pytest.mark.parametrize(
    ("constructor", "culprit"),
    [
        (no_type, "'depth' has no type"),
        (positional, "'geometry', 'depth'"),
        (hidden, "'**options' hides"),
        (star, "'*args' hides"),
        (nothing, "is nothing"),
        (optional, "is 'geometry'"),
        (mutable, "default of 'sizes' is mutable"),
        (wrong_default, "default of 'depth' must be an integer, but is 'three'"),
        (not_plain, "type of 'activation' is not plain data"),
        (bare, "type of 'sizes' is not plain data"),
        (taken, "'weight' cannot be an option"),
        (unknown_type, "'Unknown' is not defined"),
    ],
)
def test_a_constructor_that_breaks_the_rule_names_distribution_and_parameter(constructor, culprit):
    with pytest.raises(PluginError) as raised:
        schema(ENTRY, broken(constructor))
    assert "mimkit-tiny" in str(raised.value)
    assert culprit in str(raised.value)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (float | None, "a number"),
        (Literal["a", "b"], "'a' or 'b'"),
        (tuple[float, float], "an array of 2 numbers"),
        (tuple[int, ...], "an array of integers"),
        (list[str], "an array of strings"),
        (int | tuple[int, int], "an integer or an array of 2 integers"),
        (tuple[tuple[int, int], ...], "an array of arrays of 2 integers"),
        (tuple[int, str], "an array of an integer, a string"),
        (Annotated[bool, Field()], "true or false"),
    ],
)
def test_types_are_told_in_the_words_of_a_recipe(annotation, words):
    assert describe(annotation) == words
