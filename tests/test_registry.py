import sys

import pytest

from mimkit.errors import PluginError
from mimkit.parts.masker import Masker
from mimkit.recipe.registry import KINDS, entries, find, load, recipe_files


class Tiny(Masker):
    def __init__(self, geometry):
        self.grid = geometry.grid


def test_listing_imports_nothing(register):
    register("maskers", "late", "no_such_package.at_all:Masker")
    (entry,) = entries("maskers")
    assert (entry.name, entry.distribution, entry.version) == ("late", "mimkit-tiny", "1.0")


def test_listing_is_sorted_by_name(register):
    for name in ("b", "c", "a"):
        register("heads", name, "x:Y")
    assert [entry.name for entry in entries("heads")] == ["a", "b", "c"]


def test_an_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(PluginError, match=r"'masker' is not a kind.*Did you mean 'maskers'"):
        entries("masker")


def test_an_unknown_name_is_answered_with_the_nearest_and_the_command(register):
    register("maskers", "random", Tiny)
    with pytest.raises(PluginError, match=r"Did you mean 'random'\? See: mimkit list maskers"):
        find("maskers", "randm")


def test_a_name_that_two_distributions_offer_is_refused_and_both_are_named(register):
    register("maskers", "block", Tiny, distribution="mimkit-beit")
    register("maskers", "block", "elsewhere:Block", distribution="mimkit-other")
    with pytest.raises(PluginError, match=r"'mimkit-beit:block' or 'mimkit-other:block'"):
        find("maskers", "block")


def test_a_distribution_picks_one_of_two(register):
    register("maskers", "block", Tiny, distribution="mimkit-beit")
    register("maskers", "block", "elsewhere:Block", distribution="mimkit-other")
    assert load(find("maskers", "mimkit-beit:block")) is Tiny
    assert find("maskers", "mimkit-other:block").value == "elsewhere:Block"


def test_an_unknown_distribution_is_answered_with_the_nearest_full_name(register):
    register("maskers", "block", Tiny, distribution="mimkit-beit")
    with pytest.raises(PluginError, match=r"Did you mean 'mimkit-beit:block'"):
        find("maskers", "mimkit-bert:block")


def test_a_plugin_that_raises_on_import_harms_only_itself(register, tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("raise OSError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    register("maskers", "broken", "broken_plugin:Masker", distribution="mimkit-broken")
    register("maskers", "tiny", Tiny)
    assert load(find("maskers", "tiny")) is Tiny
    with pytest.raises(PluginError, match=r"mimkit-broken 1\.0.*OSError: no driver") as raised:
        load(find("maskers", "broken"))
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize("name", ["NoSuchClass", "KINDS"])
def test_what_is_not_a_class_of_the_right_base_is_refused(register, name):
    register("maskers", "odd", f"mimkit.recipe.registry:{name}")
    with pytest.raises(PluginError, match="mimkit-tiny"):
        load(find("maskers", "odd"))


def test_a_part_of_another_kind_is_refused(register):
    register("heads", "tiny", Tiny)
    with pytest.raises(PluginError, match=r"head 'tiny'.*must be a subclass of mimkit\.Head"):
        load(find("heads", "tiny"))


def test_recipes_lie_in_the_package_or_beside_it_in_a_checkout(register, tmp_path, monkeypatch):
    for folder in ("installed/recipes", "checkout/inside", "checkout/recipes", "bare"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "installed/__init__.py").touch()
    (tmp_path / "installed/recipes/one.toml").touch()
    (tmp_path / "checkout/pyproject.toml").touch()
    (tmp_path / "checkout/inside/__init__.py").touch()
    (tmp_path / "checkout/recipes/two.toml").touch()
    (tmp_path / "bare/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "checkout")
    for package in ("installed", "inside", "bare", "not_there"):
        register("recipes", package, package, distribution=f"mimkit-{package}")
    assert recipe_files() == {
        "one": tmp_path / "installed/recipes/one.toml",
        "two": tmp_path / "checkout/recipes/two.toml",
    }
    assert find("recipes", "two").distribution == "mimkit-inside"
    assert not {"installed", "inside", "bare"} & set(sys.modules)


def test_a_recipe_name_of_two_distributions_stands_for_neither(register, tmp_path, monkeypatch):
    for package in ("left", "right"):
        (tmp_path / package / "recipes").mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "recipes/same.toml").touch()
        register("recipes", package, package, distribution=package)
    monkeypatch.syspath_prepend(tmp_path)
    assert recipe_files() == {}
    assert find("recipes", "left:same").value == str(tmp_path / "left/recipes/same.toml")


def test_the_groups_are_these():
    # A new kind of part is a change of the contract: it belongs in the docs and the changelog.
    assert list(KINDS) == [
        "maskers",
        "encoders",
        "targets",
        "heads",
        "losses",
        "datasets",
        "evaluators",
        "importers",
        "exporters",
        "launchers",
        "trackers",
        "recipes",
    ]
