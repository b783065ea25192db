"""Whatever a recipe says, it is a recipe or one message: for every option of everything shipped."""

import datetime
import math
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mimkit.errors import MimkitError, RecipeError
from mimkit.recipe import registry
from mimkit.recipe.build import build, construct
from mimkit.recipe.document import Document, Place, parse
from mimkit.recipe.options import options, with_none
from mimkit.recipe.problems import Problems
from mimkit.recipe.read.validate import KIND_OF, _as_json, _part_table, _unwritable, validate
from mimkit.recipe.schema import load, resolved
from mimkit.recipe.sections import SECTIONS

PARTS = [entry for kind in KIND_OF.values() for entry in registry.entries(kind)]
TABLES = {kind: table for table, kind in KIND_OF.items()}
NUMBERS = (math.nan, math.inf, -math.inf, -1, -0.5, 0, 1, 0.5, 10**12, 2**70, 10**400, 1e300)
OTHERS = ("", "x", "none", "[/y]", "\0", "\ud800", True, False, [], {}, datetime.date(1979, 5, 27))
VALUES = (
    *NUMBERS,
    *OTHERS,
    *([number] * 2 for number in (math.nan, math.inf, -1, 0, 10**12)),
    [math.nan] * 4,
    [0] * 4,
    ["x"],
    [[0.5, 1]],
    {"part": "x"},
)
ANY_VALUE = st.recursive(
    st.one_of(st.sampled_from(NUMBERS + OTHERS), st.floats(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


@cache
def shipped():
    """The document of every shipped recipe, written out in full."""
    found = {}
    for entry in registry.entries("recipes"):
        recipe = load(entry.value)
        found[entry.name] = parse(resolved(recipe), entry.name), recipe
    return found


@cache
def example(entry):
    """A document in which a part occurs, and the key of its table."""
    for document, recipe in shipped().values():
        for key, table in recipe.parts.items():
            if (table.kind, table.name) == (entry.kind, entry.name):
                name, _, rest = key.partition(".")
                return document, (
                    name,
                    *((int(rest) if rest.isdecimal() else rest,) if rest else ()),
                )
    document, _ = shipped()["mae_shapes"]
    table = TABLES[entry.kind]
    names = {"evaluate": (0,), "targets": ("pixels",), "losses": ("pixels",)}.get(table, ())
    made = registry.load(entry).miniature
    changed = nested((table, *map(str, names)), {"part": entry.name, **made})
    return document.overlay(changed), (table, *names)


def nested(key, value):
    for name in reversed(key):
        value = {name: value}
    return Document(value, {(): Place("the test")})


def outcome(document):
    """Returns what checking a recipe says: "" if it is one. Anything but a MimkitError goes on."""
    problems = Problems()
    try:
        recipe = validate(document, None, problems)
        problems.raise_if_any()
        built(recipe)
    except MimkitError as error:
        return str(error)
    return ""


def built(recipe):
    """Builds a recipe as ``mimkit check`` does, and returns what its last parts know."""
    geometry = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3, device="meta").geometry
    for number in range(len(recipe.evaluate)):
        construct(recipe, f"evaluate.{number}", geometry)
    return geometry


@cache
def geometry_of(entry):
    """What the example of a part tells it."""
    recipe = validate(example(entry)[0], None, Problems())
    return built(recipe)


def tried(document, key, value):
    try:
        changed = document.overlay(nested(tuple(map(str, key)), value))
    except MimkitError as error:  # as an item of an array that has none of this number
        return str(error)
    return outcome(changed)


def tried_alone(entry, option, value):
    """Reads and makes one part as `tried` does, without the others, which takes long."""
    document, at = example(entry)
    problems = Problems()
    alone = nested((TABLES[entry.kind],), document.at(at))
    at = at[:1]
    try:
        changed = alone.overlay(nested((*at, option), value))
        for key in _unwritable(changed.tree):
            problems.add(changed, key, "cannot be written")
        table = None if problems else _part_table(changed, at, problems)
        problems.raise_if_any()
        with torch.device("cpu" if entry.kind == "maskers" else "meta"):
            table.cls(geometry_of(entry), **table.options)
    except MimkitError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("entry", PARTS, ids=str)
def test_every_option_of_every_part_takes_a_value_or_refuses_it_by_name(entry):
    document, _ = example(entry)
    assert outcome(document) == ""
    for option in options(entry, registry.load(entry)):
        for value in VALUES:
            said = tried_alone(entry, option.name, value)
            if any(not math.isfinite(number) for number in flat(value)):
                assert option.name in said, (option, value)


def flat(value):
    if isinstance(value, list):
        return [inner for item in value for inner in flat(item)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_every_table_takes_a_value_or_refuses_it_by_name(section):
    document, _ = shipped()["mae_shapes"]
    model = SECTIONS[section]
    for key in model.model_fields:
        for value in VALUES:
            table = {**document.at((section,)), key: value}
            if list(_unwritable(table)):
                continue
            try:
                model.model_validate_json(_as_json(with_none(table, model)))
            except ValidationError as error:
                problems = Problems()
                problems.add_invalid(nested((section,), table), (section,), model, error)
                with pytest.raises(RecipeError, match=key):
                    problems.raise_if_any()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PARTS), st.data(), ANY_VALUE)
def test_no_value_of_no_option_ends_in_anything_but_a_message(entry, data, value):
    document, at = example(entry)
    names = [option.name for option in options(entry, registry.load(entry))]
    name = data.draw(st.sampled_from([*names, "part", "unknown"]))
    tried(document, (*at, name), value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("encoder.depth", 0, "[encoder] depth: must be an integer from 1 to 256, but is 0"),
        ("encoder.depth", 10**12, "must be an integer from 1 to 256, but is 1000000000000"),
        ("encoder.embed_dim", 10**12, "must be an integer from 1 to 65,536, but is 1000000000000"),
        ("encoder.num_heads", 0, "must be an integer from 1 to 65,536, but is 0"),
        ("encoder.drop_path", 7, "must be a number of at least 0 and below 1, but is 7"),
        ("encoder.layer_scale", math.inf, "neither nan nor inf, but is inf"),
        ("encoder.mlp_ratio", math.nan, "neither nan nor inf, but is nan"),
        ("masker.mask_ratio", math.nan, "a number from 0 to 1, neither nan nor inf, but is nan"),
        ("masker.part", datetime.date(1979, 5, 27), "must be a string, but is 1979-05-27"),
    ],
)
def test_a_number_out_of_bounds_is_refused_with_its_bounds(option, value, said):
    document, _ = shipped()["mae_shapes"]
    assert said in tried(document, option.split("."), value)


@pytest.mark.parametrize("name", ["half", "type", "keys", "a.b", "", "a/b", "../x", "_modules"])
@pytest.mark.parametrize("table", ["targets", "losses", "prediction"])
def test_a_name_that_cannot_be_is_refused_with_the_rule(table, name):
    document, _ = shipped()["mae_shapes"]
    key = ("losses", "pixels", "prediction") if table == "prediction" else (table, name, "part")
    said = tried(document, key, name if table == "prediction" else "mse")
    assert "the name" in said
    assert f"'{name}'" in said


@pytest.mark.parametrize("name", ["half_", "Patches", "a-b", "1", "größe", "weight", "encoder"])
def test_any_other_name_can_be_that_of_a_target_a_loss_and_a_prediction(name):
    document, _ = shipped()["simmim_cifar"]
    renamed = document.without("targets", "losses").overlay(
        Document(
            {
                "targets": {name: {"part": "pixels"}},
                "losses": {name: {"part": "l1", "prediction": name}},
            },
            {(): Place("the test")},
        )
    )
    assert outcome(renamed) == ""
