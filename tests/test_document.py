import string

import pytest
import tomli_w
from hypothesis import assume, given
from hypothesis import strategies as st

from mimkit.errors import RecipeError
from mimkit.recipe.document import parse, parse_sets

NAMES = st.text(string.ascii_lowercase + "_-", min_size=1, max_size=6)
VALUES = st.one_of(
    st.integers(-9, 9),
    st.booleans(),
    st.text("a\"'#=[]{}\n\\ ", max_size=8),
    st.lists(st.text("a\"'#=[]\n", max_size=4), max_size=3),
)
TREES = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(VALUES, inner), max_size=4),
    max_leaves=12,
)


def keys(tree, at=()):
    for name, value in tree.items():
        yield (*at, name)
        if isinstance(value, dict):
            yield from keys(value, (*at, name))


@given(TREES)
def test_every_key_is_found_on_the_line_that_names_it(tree):
    text = tomli_w.dumps(tree)
    lines = text.split("\n")
    document = parse(text, "x.toml")
    for key in keys(tree):
        assert key[-1] in lines[document.places[key].line - 1]


def test_lines_survive_comments_strings_arrays_and_dotted_keys():
    text = (
        '''
# [not.a.table]
name = "a # b"     # c = 1
[data]
text = """
[neither.this]
x = 1 """
"quoted.key" = ["[", # ]
  "]",
]
a.b = { c = 1 }

[[evaluate]]
part = 'it'''
        + "''"
        + """
[[evaluate]]
part = "two"
[evaluate.inner]
x = 1
"""
    )
    text = text.replace("'it''", "'it'")
    lines = {key: place.line for key, place in parse(text, "x.toml").places.items()}
    assert lines == {
        (): 1,
        ("name",): 3,
        ("data",): 4,
        ("data", "text"): 5,
        ("data", "quoted.key"): 8,
        ("data", "a"): 11,
        ("data", "a", "b"): 11,
        ("evaluate",): 13,
        ("evaluate", 0): 13,
        ("evaluate", 0, "part"): 14,
        ("evaluate", 1): 15,
        ("evaluate", 1, "part"): 16,
        ("evaluate", 1, "inner"): 17,
        ("evaluate", 1, "inner", "x"): 18,
    }


def test_a_key_without_a_line_stands_with_its_table():
    document = parse("[data]\nsize = { rows = 1 }\n", "x.toml")
    assert str(document.place(("data", "size", "rows"))) == "x.toml:2"
    assert str(document.place(("data", "missing"))) == "x.toml:1"
    assert str(document.place(("missing",))) == "x.toml:1"


@pytest.mark.parametrize(("text", "line"), [("a = 1\nb = \n", 2), ("a = 1\nb = [1,\n", 3)])
def test_a_syntax_error_is_told_with_its_line(text, line):
    with pytest.raises(RecipeError, match=rf"x\.toml:{line}: this is not valid TOML"):
        parse(text, "x.toml")


@pytest.mark.parametrize(
    ("override", "tree"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a.b = 1e-3", {"a": {"b": 0.001}}),
        ("a=true", {"a": True}),
        ("a=shapes", {"a": "shapes"}),
        ('a="3"', {"a": "3"}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a=[{part = "knn"}]', {"a": [{"part": "knn"}]}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": ""}),
        ("a=1\nb=2", {"a": "1\nb=2"}),
        ('"a.b".c=1', {"a.b": {"c": 1}}),
    ],
)
def test_a_setting_is_toml_or_else_a_bare_string(override, tree):
    assert parse_sets([override]).tree == tree


@pytest.mark.parametrize("override", ["a", "=1", "a b=1", "a..b=1", ""])
def test_a_malformed_setting_is_refused(override):
    with pytest.raises(RecipeError, match="must be KEY=VALUE"):
        parse_sets([override])


def indexes(base, over):
    """Whether a table of the one meets an array of the other, whose items it would name."""
    return isinstance(over, dict) and (
        isinstance(base, list)
        or (isinstance(base, dict) and any(indexes(base.get(k), over[k]) for k in over))
    )


@given(TREES, TREES)
def test_laying_over_keeps_the_rest_and_takes_the_new(base, over):
    assume(not indexes(base, over))
    merged = parse(tomli_w.dumps(base), "base").overlay(parse(tomli_w.dumps(over), "over"))

    def expected(old, new):
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return new
        return {**old, **{name: expected(old.get(name), value) for name, value in new.items()}}

    assert merged.tree == expected(base, over)
    for key in keys(over):
        written = merged.place(key).source
        assert written == "over" or isinstance(merged.at(key), dict)


@given(TREES)
def test_laying_a_document_over_itself_changes_nothing(tree):
    document = parse(tomli_w.dumps(tree), "x")
    assert document.overlay(document) == document


def merge(base, over):
    return parse(base, "base").overlay(parse(over, "over")).tree


def test_a_table_whose_part_changes_is_replaced_whole():
    base = '[masker]\npart = "random"\nmask_ratio = 0.5'
    assert merge(base, '[masker]\npart = "block"') == {"masker": {"part": "block"}}
    assert merge(base, '[masker]\npart = "random"\nunit = 2') == {
        "masker": {"part": "random", "mask_ratio": 0.5, "unit": 2}
    }
    assert merge(base, "[masker]\nunit = 2")["masker"]["mask_ratio"] == 0.5


def test_the_order_of_settings_of_one_table_does_not_matter():
    one = parse_sets(["masker.unit=2", "masker.part=block"]).tree
    other = parse_sets(["masker.part=block", "masker.unit=2"]).tree
    assert one == other == {"masker": {"part": "block", "unit": 2}}


def test_of_two_spellings_of_a_duration_the_overlay_wins():
    base = "[train]\ntotal_steps = 5\nwarmup_epochs = 1"
    assert merge(base, "[train]\ntotal_epochs = 2\nwarmup_steps = 3") == {
        "train": {"total_epochs": 2, "warmup_steps": 3}
    }


def test_a_presets_keys_are_told_with_its_name():
    document = parse("[presets.demo]\ntrain.steps = 1\n", "x.toml").preset("demo")
    assert document.tree == {"train": {"steps": 1}}
    assert str(document.place(("train", "steps"))) == "x.toml:2 (preset demo)"


ARRAYS = """
[[evaluate]]
part = "knn"
k = 20
[[evaluate]]
part = "finetune"
lrs = [0.1, 0.2]
"""


@pytest.mark.parametrize(
    ("override", "tree"),
    [
        ("evaluate.0.k=5", [{"part": "knn", "k": 5}, {"part": "finetune", "lrs": [0.1, 0.2]}]),
        ("evaluate.1.lrs.1=9", [{"part": "knn", "k": 20}, {"part": "finetune", "lrs": [0.1, 9]}]),
        ("evaluate.0.part=none", [{"part": "finetune", "lrs": [0.1, 0.2]}]),
        ("evaluate.1.part=knn", [{"part": "knn", "k": 20}, {"part": "knn"}]),
        ("evaluate=[]", []),
    ],
)
def test_a_setting_reaches_into_an_array(override, tree):
    document = parse(ARRAYS, "x.toml")
    assert document.overlay(parse_sets([override])).tree == {"evaluate": tree}
    if override.partition("=")[2] not in ("none", "knn"):  # in TOML these need quotes
        assert document.overlay(parse(override, "over")).tree == {"evaluate": tree}


def test_what_is_left_of_an_array_keeps_its_lines():
    left = parse(ARRAYS, "x.toml").overlay(parse_sets(["evaluate.0.part=none", "evaluate.1.k=3"]))
    assert left.place(("evaluate", 0, "part")).line == 6
    assert left.place(("evaluate", 0, "k")).source == "--set evaluate.1.k=3"
    assert left.settings().keys() == {("evaluate", 0, "k")}


@pytest.mark.parametrize("item", ["2", "9" * 30, "-1", "x", "00x", "²"])
def test_an_item_that_is_not_there_is_told_with_their_number(item):
    with pytest.raises(RecipeError, match="evaluate has 2, numbered from 0"):
        parse(ARRAYS, "x.toml").overlay(parse_sets([f'evaluate."{item}".k=5']))
    with pytest.raises(RecipeError, match="evaluate is empty"):
        parse("evaluate = []", "x.toml").overlay(parse_sets([f'evaluate."{item}".k=5']))


def test_a_table_can_be_taken_away_after_it_was_changed():
    settings = parse_sets(["head.depth=3", "head.part=none"])
    assert parse('[head]\npart = "x"', "x.toml").overlay(settings).tree == {}


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000 + "]" * 5000, f"[{'.'.join('a' * 3000)}]", "a = " + "9" * 6000],
    ids=["arrays", "tables", "digits"],
)
def test_what_no_recipe_would_hold_is_refused(text):
    with pytest.raises(RecipeError, match=r"cannot be read|nested deeper"):
        parse(text, "x.toml")
    with pytest.raises(RecipeError, match="nested deeper"):
        parse_sets([f"{'.'.join('a' * 100)}=1"])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (r'path = "C:\Users\me"', r"single quotes: 'C:\Users'"),
        (r'path = "C:\data"', r"single quotes: 'C:\Users'"),
        ("a = 1\na = 2", "once only"),
        ("[a]\n[a]", "once only"),
    ],
)
def test_common_mistakes_are_told_as_such(text, hint):
    with pytest.raises(RecipeError) as raised:
        parse(text, "x.toml")
    assert hint in str(raised.value)
