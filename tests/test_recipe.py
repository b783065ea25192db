from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimkit.errors import PluginError, RecipeError
from mimkit.evaluate.base import Evaluator
from mimkit.parts.encoder import Encoder
from mimkit.parts.head import Head
from mimkit.parts.loss import Loss
from mimkit.parts.masker import Masker
from mimkit.parts.target import Target
from mimkit.recipe.schema import check, load, resolved

RECIPE = """\
name = "tiny"

[data]
name = "shapes"
image_size = [16, 20]
patch_size = 4

[masker]
part = "tiny"
mask_ratio = 1

[encoder]
part = "tiny"

[targets.patches]
part = "tiny"

[head]
part = "tiny"

[losses.patches]
part = "tiny"

[train]
total_steps = 10
batch_size = 4
optimizer = "adamw"
lr = 0.1

[[evaluate]]
part = "tiny"

[presets.demo]
data.name = "cifar10"
train.total_steps = 3

[presets.epochs]
train.total_epochs = 2
"""


class TinyMasker(Masker):
    def __init__(self, geometry, *, mask_ratio: float, unit: int = 1): ...


class OtherMasker(Masker):
    def __init__(self, geometry, *, low: int = 1): ...


class TinyEncoder(Encoder):
    def __init__(
        self,
        geometry,
        *,
        embed_dim: int = 16,
        positions: str = "learned",
        scale: tuple[float, ...] = (1.0,),
        drop: float | None = None,
        bias: bool = True,
    ): ...


class TinyTarget(Target):
    def __init__(self, geometry): ...


class TinyHead(Head):
    def __init__(self, geometry): ...


class TinyLoss(Loss):
    def __init__(self, geometry, *, beta: float = 1.0): ...


class TinyEvaluator(Evaluator):
    def __init__(self, geometry, *, fractions: tuple[float, ...] = (0.5, 1.0)): ...


@pytest.fixture(autouse=True)
def parts(register):
    for kind, cls in {
        "maskers": TinyMasker,
        "encoders": TinyEncoder,
        "targets": TinyTarget,
        "heads": TinyHead,
        "losses": TinyLoss,
        "evaluators": TinyEvaluator,
    }.items():
        register(kind, "tiny", cls)
    register("maskers", "other", OtherMasker)


@pytest.fixture
def written(tmp_path):
    """Writes a recipe's text to a file."""

    def write(text):
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def recipe(tmp_path):
    """Writes the recipe with some text replaced."""

    def write(old="", new=""):
        assert old in RECIPE
        path = tmp_path / "tiny.toml"
        path.write_text(RECIPE.replace(old, new, 1) if old else RECIPE)
        return str(path)

    return write


def problems(path, **arguments):
    with pytest.raises(RecipeError) as raised:
        load(path, **arguments)
    return str(raised.value).replace(path, "tiny.toml").split("\n")


def test_every_default_is_written_out(recipe):
    loaded = load(recipe())
    assert loaded.data.image_size == (16, 20)
    assert loaded.masker.options == {"mask_ratio": 1.0, "unit": 1}
    assert loaded.encoder.options["scale"] == (1.0,)
    assert (loaded.masker.distribution, loaded.masker.version) == ("mimkit-tiny", "1.0")
    term = loaded.losses["patches"]
    assert (term.prediction, term.target, term.weight) == ("patches", "patches", 1.0)
    assert loaded.evaluate[0].cls is TinyEvaluator
    assert loaded.seed == 0
    assert loaded.train.clip_norm is None
    assert loaded.augment.crop == "resized"


def test_keys_of_a_loss_table_go_to_the_term_and_the_rest_to_the_loss(recipe):
    path = recipe(
        "[losses.patches]\n", '[losses.patches]\nprediction = "p"\nweight = 2\nbeta = 3\n'
    )
    term = load(path).losses["patches"]
    assert (term.prediction, term.weight, term.loss.options) == ("p", 2.0, {"beta": 3.0})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mask_ratio = 1",
            "mask_ration = 1\nmask_ratio = 1",
            "tiny.toml:10, [masker] mask_ration: unknown key of masker 'tiny' (mimkit-tiny 1.0). "
            "Did you mean 'mask_ratio'? See: mimkit list maskers tiny",
        ),
        (
            "mask_ratio = 1",
            "",
            "tiny.toml:8, [masker] mask_ratio: is missing; it must be a number. "
            "See: mimkit list maskers tiny",
        ),
        (
            "mask_ratio = 1",
            'mask_ratio = "1"',
            'tiny.toml:10, [masker] mask_ratio: must be a number, but is "1". '
            "See: mimkit list maskers tiny",
        ),
        (
            '[head]\npart = "tiny"',
            '[head]\npart = "tinny"',
            "tiny.toml:19, [head] part: head 'tinny' is offered by no installed distribution. "
            "Did you mean 'tiny'? See: mimkit list heads",
        ),
        (
            "[head]",
            "[haed]",
            "tiny.toml:18, haed: unknown key of a recipe. Did you mean 'head'?",
        ),
        (
            '[head]\npart = "tiny"',
            "",
            "tiny.toml:1, [head]: is missing; it must be a table (what predicts; see: mimkit list "
            "heads).",
        ),
        (
            "patch_size = 4",
            "patch_size = 5",
            "tiny.toml:6, [data] patch_size: must divide image_size (16 x 20 pixels), but is 5.",
        ),
        (
            "image_size = [16, 20]",
            "image_size = 16.0",
            "tiny.toml:5, [data] image_size: must be an integer from 1 to 16384, or an array of "
            "two, but is 16.0.",
        ),
        (
            "total_steps = 10",
            "total_steps = 10\ntotal_epochs = 1",
            "tiny.toml:26, [train] total_epochs: exactly one of total_steps and total_epochs must "
            "be given, not both.",
        ),
        (
            "total_steps = 10\n",
            "",
            "tiny.toml:24, [train] total_epochs: exactly one of total_steps and total_epochs must "
            "be given, not neither.",
        ),
        (
            "lr = 0.1",
            "lr = 0.1\nwarmup_steps = 1\nwarmup_epochs = 1",
            "tiny.toml:30, [train] warmup_epochs: only one of warmup_steps and warmup_epochs may "
            "be given.",
        ),
        (
            "batch_size = 4",
            "batch_size = 4\naccumulate = 3",
            "tiny.toml:27, [train] accumulate: must divide batch_size (4), but is 3.",
        ),
        (
            '"adamw"',
            '"adam"',
            "tiny.toml:27, [train] optimizer: must be 'sgd' or 'adamw', but is \"adam\". "
            "Did you mean 'adamw'?",
        ),
        (
            "lr = 0.1",
            "lr = 0",
            "tiny.toml:28, [train] lr: must be a number above 0, but is 0.",
        ),
        (
            "[losses.patches]\n",
            '[losses.patches]\ntarget = "patch"\n',
            "tiny.toml:22, [losses.patches] target: must be one of the recipe's targets "
            "('patches'), but is 'patch'. Did you mean 'patches'?",
        ),
        (
            "[head]\n",
            '[targets.spare]\npart = "tiny"\n[head]\n',
            "tiny.toml:18, [targets.spare]: no loss compares this target with a prediction. Remove "
            "it, or add a table [losses.spare].",
        ),
        (
            'name = "tiny"',
            'name = "a/b"',
            "tiny.toml:1, name: must name a folder: letters, digits and '_.-', with a "
            "letter, digit or '_' first and last, but is 'a/b'.",
        ),
        (
            'name = "tiny"',
            'name = "tiny"\nseed = -1',
            "tiny.toml:2, seed: must be an integer of at least 0 and below 2^63, but is -1.",
        ),
        (
            '[[evaluate]]\npart = "tiny"',
            '[evaluate]\npart = "tiny"',
            'tiny.toml:30, [evaluate]: must be an array of tables, but is { part = "tiny" }.',
        ),
        (
            '[[evaluate]]\npart = "tiny"',
            '[[evaluate]]\npart = "tiny"\n[[evaluate]]\npart = "tiny"\nfractions = 1',
            "tiny.toml:34, [evaluate.1] fractions: must be an array of numbers, but is 1. "
            "See: mimkit list evaluators tiny",
        ),
    ],
)
def test_a_problem_is_told_with_file_line_key_expectation_and_next_step(recipe, old, new, message):
    found = problems(recipe(old, new))
    assert message in found
    assert len(found) <= 2  # [haed] is an unknown table, and [head] is missing


def test_all_problems_are_told_at_once_in_the_order_of_the_file(recipe):
    path = Path(recipe())
    text = path.read_text()
    for old, new in [
        ("patch_size = 4", "patch_size = 5\nsize = 3"),
        ("mask_ratio = 1", "unit = 1.5"),
        ('[encoder]\npart = "tiny"', '[encoder]\npart = "tony"'),
        ("batch_size = 4", "batch_size = 0"),
        ("lr = 0.1", "rl = 0.1"),
    ]:
        text = text.replace(old, new)
    path.write_text(text)
    found = problems(str(path))
    keys = [problem.split(": ")[0].split(", ")[1] for problem in found]
    assert keys == [
        "[data] patch_size",
        "[data] size",
        "[masker] mask_ratio",
        "[masker] unit",
        "[encoder] part",
        "[train] lr",
        "[train] batch_size",
        "[train] rl",
    ]


def test_a_broken_plugin_is_told_in_place_with_its_cause(recipe, register, tmp_path, monkeypatch):
    (tmp_path / "broken_encoder.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    register("encoders", "broken", "broken_encoder:E", distribution="mimkit-broken")
    path = recipe('[encoder]\npart = "tiny"', '[encoder]\npart = "broken"')
    with pytest.raises(RecipeError, match=r"tiny\.toml:13, \[encoder\] part: .*mimkit-broken") as e:
        load(path)
    assert isinstance(e.value.__cause__, PluginError)
    assert isinstance(e.value.__cause__.__cause__, ZeroDivisionError)
    assert load(recipe()).encoder.name == "tiny"


def test_a_distribution_can_be_picked(recipe, register):
    register("encoders", "tiny", "elsewhere:Tiny", distribution="mimkit-two")
    assert "distributions offer it" in problems(recipe())[0]
    path = recipe('[encoder]\npart = "tiny"', '[encoder]\npart = "mimkit-tiny:tiny"')
    assert load(path).encoder.name == "mimkit-tiny:tiny"


# --- presets and settings -------------------------------------------------------------------


def test_a_preset_is_laid_over_and_settings_over_that(recipe):
    path = recipe()
    assert load(path).train.total_steps == 10
    demo = load(path, preset="demo", overrides=["train.total_steps=2", "data.path=/x"], seed=3)
    assert (demo.data.name, demo.train.total_steps, demo.data.path) == ("cifar10", 2, "/x")
    assert demo.seed == 3
    assert load(path, data_path="/y").data.path == "/y"


def test_epochs_replace_steps(recipe):
    epochs = load(recipe(), preset="epochs").train
    assert (epochs.total_steps, epochs.total_epochs) == (None, 2.0)
    assert load(recipe(), preset="epochs", overrides=["train.total_steps=4"]).train.total_steps == 4


def test_another_part_starts_from_its_own_defaults(recipe):
    assert load(recipe(), overrides=["masker.part=other"]).masker.options == {"low": 1}


def test_arrays_are_replaced_whole(recipe):
    assert load(recipe(), overrides=["evaluate=[]"]).evaluate == []


def test_an_unknown_preset_is_answered_with_the_known_ones(recipe):
    (problem,) = problems(recipe(), preset="dmo")
    assert "presets (demo, epochs), but is 'dmo'. Did you mean 'demo'?" in problem


def test_a_wrong_setting_is_told_by_its_own_words(recipe):
    found = problems(recipe(), overrides=["train.total_step=4", "seed=x", "trian.lr=1"])
    assert found == [
        '--set seed=x, seed: must be an integer of at least 0 and below 2^63, but is "x".',
        "--set train.total_step=4, [train] total_step: unknown key of [train]. "
        "Did you mean 'total_steps'?",
        "--set trian.lr=1, trian: unknown key of a recipe. Did you mean 'train'?",
    ]


def test_only_check_looks_at_presets_not_chosen(recipe):
    path = recipe("data.name = ", "data.nmae = ")
    assert load(path).name == "tiny"
    with pytest.raises(RecipeError, match=r"tiny\.toml:34 \(preset demo\), \[data\] nmae"):
        check(path)
    assert check(recipe(), preset="demo").same_as(load(recipe(), preset="demo"))


def test_check_tells_a_problem_of_the_base_once(recipe):
    with pytest.raises(RecipeError) as raised:
        check(recipe("patch_size = 4", "patch_size = 5"))
    assert len(str(raised.value).split("\n")) == 1


@pytest.mark.parametrize(
    ("first_line", "last_line", "key"),
    [("presets = 3", "", "presets"), ("", "[presets]\na = 1", "a")],
)
def test_presets_must_be_tables(written, first_line, last_line, key):
    base = RECIPE.partition("[presets")[0]
    (problem,) = problems(written(f"{first_line}\n{base}\n{last_line}"))
    assert f"{key}]: must" in problem or f"{key}: must" in problem


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 9),
        "data.name": st.sampled_from(["a", "cifar10", "x/y"]),
        "data.patch_size": st.sampled_from([1, 2, 4]),
        "augment.flip": st.booleans(),
        "augment.crop_scale": st.sampled_from([[0.1, 1.0], [0.5, 0.5]]),
        "encoder.embed_dim": st.integers(),
        "encoder.positions": st.text(
            st.characters(codec="utf-8", exclude_characters="\0"), max_size=5
        ),
        "encoder.scale": st.lists(FINITE, max_size=3),
        "encoder.drop": st.one_of(FINITE, st.just("none")),
        "encoder.bias": st.booleans(),
        "losses.patches.weight": st.floats(-9, 9),
        "losses.patches.prediction": st.sampled_from(["p", "q"]),
        "train.total_steps": st.integers(1, 99),
        "train.lr": st.floats(1e-9, 1.0),
        "train.clip_norm": st.floats(1e-3, 9.0),
        "evaluate": st.lists(
            st.fixed_dictionaries(
                {"part": st.just("tiny"), "fractions": st.lists(st.floats(0, 1), max_size=2)}
            ),
            max_size=2,
        ),
    },
)


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *tables, key = name.split(".")
        table = tree
        for step in tables:
            table = table.setdefault(step, {})
        table[key] = value
    return tree


def as_overrides(flat):
    return [f"{name}={inline(value)}" for name, value in flat.items()]


def inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip("\n")


fixtures_are_constant = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@fixtures_are_constant
@given(SETTINGS)
def test_a_resolved_recipe_is_the_same_recipe(written, flat):
    recipe = load(written(RECIPE), overrides=as_overrides(flat))
    text = resolved(recipe)
    again = load(written(text))
    assert again.same_as(recipe)
    assert resolved(again) == text
    assert again.notes == ()


@fixtures_are_constant
@given(SETTINGS, SETTINGS)
def test_preset_and_settings_mean_what_editing_the_file_means(written, first, second):
    base = RECIPE.partition("[presets")[0]
    preset = tomli_w.dumps({"presets": {"p": nested(first)}})
    recipe = load(written(f"{base}\n{preset}"), preset="p", overrides=as_overrides(second))
    both = load(written(base), overrides=as_overrides({**first, **second}))
    assert recipe.same_as(both)


# --- resolved -------------------------------------------------------------------------------


def test_a_resolved_recipe_names_the_origin_of_every_part(recipe):
    text = resolved(load(recipe()))
    assert 'masker = "mimkit-tiny 1.0"' in text
    assert '"targets.patches" = "mimkit-tiny 1.0"' in text
    assert "torch = " in text
    assert "presets" not in text


def test_another_version_is_noted_and_not_refused(recipe, written):
    text = resolved(load(recipe())).replace(
        'masker = "mimkit-tiny 1.0"', 'masker = "mimkit-tiny 0.9"'
    )
    assert load(written(text)).notes == (
        "masker: the recipe was written with mimkit-tiny 0.9, here it is mimkit-tiny 1.0",
    )


def test_recipes_that_differ_are_not_the_same(recipe):
    path = recipe()
    assert not load(path).same_as(load(path, overrides=["encoder.bias=false"]))
    assert not load(path).same_as(load(path, seed=1))


# --- files ----------------------------------------------------------------------------------


def test_a_missing_file_is_answered_with_the_nearest(recipe, tmp_path):
    recipe()
    with pytest.raises(RecipeError, match=r"no such recipe file\. Did you mean 'tiny\.toml'"):
        load(str(tmp_path / "tinny.toml"))


def test_a_registered_recipe_needs_no_path(register, tmp_path, monkeypatch):
    (tmp_path / "some_recipes/recipes").mkdir(parents=True)
    (tmp_path / "some_recipes/__init__.py").touch()
    (tmp_path / "some_recipes/recipes/tiny_shapes.toml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    register("recipes", "some", "some_recipes")
    assert load("tiny_shapes").name == "tiny"
    with pytest.raises(PluginError, match="Did you mean 'tiny_shapes'"):
        load("tiny_shape")
    with pytest.raises(RecipeError, match="Did you mean 'tiny_shapes'"):
        load("recipes/tiny_shape.toml")
    (tmp_path / "tiny_shapes").mkdir()  # a folder of that name does not hide it
    assert load("tiny_shapes").name == "tiny"


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="is in UTF-16"):
        load(str(tmp_path / "x.toml"))


# ------------------------------------------------------------------------------- recipes on recipes


@pytest.fixture
def base(recipe):
    """The tiny recipe's file."""
    return Path(recipe())


@pytest.fixture
def over(base, tmp_path):
    """Writes a recipe that is laid over the tiny one."""

    def write(text):
        path = tmp_path / "over.toml"
        path.write_text(f'base = "{base.name}"\n{text}')
        return str(path)

    return write


def test_a_recipe_is_laid_over_its_base(over, base):
    read = load(over('name = "over"\n[train]\nbatch_size = 2\n'))
    assert (read.name, read.train.batch_size, read.train.total_steps) == ("over", 2, 10)
    assert read.same_as(load(str(base), overrides=["name=over", "train.batch_size=2"]))


def test_it_is_laid_over_the_preset_of_its_base(over, base):
    with base.open("a") as file:
        file.write("\n[presets.short]\ntrain.total_steps = 3\ntrain.batch_size = 8\n")
    path = over("[train]\nbatch_size = 2\n[presets.short]\nseed = 5\n")
    read = load(path, preset="short")
    assert (read.train.total_steps, read.train.batch_size, read.seed) == (3, 2, 5)
    with pytest.raises(RecipeError, match=r"but is 'shorter'.*Did you mean 'short'"):
        load(path, preset="shorter")


def test_a_problem_is_told_in_the_file_that_has_it(over):
    with pytest.raises(RecipeError, match=r"over\.toml:3, \[train\] batch_size"):
        load(over("[train]\nbatch_size = 0\n"))


def test_part_none_takes_a_table_away(over, base):
    more = '[targets.more]\npart = "tiny"\n[losses.more]\npart = "tiny"\n'
    base.write_text(base.read_text().replace("[train]", f"{more}[train]"))
    read = load(over('[targets.more]\npart = "none"\n[losses.more]\npart = "none"\n'))
    assert list(read.targets) == list(read.losses) == ["patches"]


def test_a_recipe_that_leads_back_to_itself_is_refused(over, base):
    path = over("")
    base.write_text('base = "over.toml"\n' + base.read_text())
    with pytest.raises(RecipeError, match="must not lead back to itself"):
        load(path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("3", "must be a recipe's name or file, but is 3"),
        ('"tinny.toml"', r"tinny\.toml: there is no such recipe file"),
    ],
)
def test_a_base_that_is_none_is_told(tmp_path, base, message):
    path = tmp_path / "over.toml"
    path.write_text(f"base = {base}\n")
    with pytest.raises((RecipeError, PluginError), match=message):
        load(str(path))


# --- what has no value, and what is no recipe -------------------------------------------------


def test_none_unsets_a_key_in_toml_presets_and_settings(recipe, over, base):
    limited = recipe('name = "shapes"\n', 'name = "shapes"\nnum_images = 9\npath = "x"\n')
    assert load(limited).data.num_images == 9
    unset = load(limited, overrides=["data.num_images=none", 'data.path="none"'])
    assert (unset.data.num_images, unset.data.path) == (None, None)
    assert load(str(over('data.num_images = "none"'))).data.num_images is None
    assert "num_images" not in resolved(unset)


def test_none_unsets_an_option_whose_default_is_something(register, recipe, written):
    class Scaled(Encoder):
        def __init__(self, geometry, *, scale: float | None = 0.1, crop: str = "x"): ...

    register("encoders", "scaled", f"{__name__}:TinyEncoder")
    globals()["Scaled"] = Scaled
    register("encoders", "really", f"{__name__}:Scaled")
    chosen = load(recipe(), overrides=["encoder.part=really", "encoder.scale=none"])
    assert chosen.encoder.options == {"scale": None, "crop": "x"}
    assert load(written(resolved(chosen))).encoder.options["scale"] is None
    # What must be a string may be this one.
    assert (
        load(recipe(), overrides=["encoder.positions=none"]).encoder.options["positions"] == "none"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr=none", 'lr: must be a number above 0, but is "none"'),
        ("augment.crop=none", ""),  # a choice of its own
        ("losses.patches.prediction=none", ""),
        ("losses.patches.target=none", ""),
    ],
)
def test_none_is_no_value_of_what_must_have_one(recipe, override, said):
    if said:
        assert said in problems(recipe(), overrides=[override])[0]
    else:
        loaded = load(recipe(), overrides=[override])
        assert loaded.augment.crop == ("none" if "crop" in override else "resized")
        assert loaded.losses["patches"].prediction == "patches"
        assert loaded.losses["patches"].target == "patches"


@pytest.mark.parametrize(
    "name", ["con", "NUL", "com1.x", "a.", "..", ".", "a/b", "-a", "a b", "a" * 101, "größe", ""]
)
def test_a_name_that_can_be_no_folder_somewhere_is_refused(recipe, name):
    (problem,) = problems(recipe(), overrides=[f'name="{name}"'])
    assert "name: " in problem


def test_a_byte_order_mark_and_other_line_ends_are_taken(tmp_path):
    file = tmp_path / "x.toml"
    file.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert load(str(file)).name == "tiny"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name = 1".encode("utf-16"), "is in UTF-16. Save it as UTF-8."),
        (b'a = 1\nb = "\xe9"', "x.toml:2: must be text in UTF-8, but has the byte 0xe9"),
        (b"#" * 1_000_001, "at most 1,000,000 bytes"),
        (b'base = "tiny\\u0000"', "no installed distribution"),
        (b'base = "' + b"m" * 5000 + b'"', "File name too long"),
        (b'base = "' + b"m" * 5000 + b'.toml"', "File name too long"),
        (b"base = 1979-05-27", "must be a recipe's name or file, but is 1979-05-27"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_what_it_is(tmp_path, content, said):
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises((RecipeError, PluginError)) as raised:
        load(str(file))
    assert said in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("reference", ["n" * 5000, "", ".", "a\0b", "x/" * 2000])
def test_a_reference_that_is_no_recipe_is_told(reference):
    with pytest.raises((RecipeError, PluginError)):
        load(reference)


def test_a_registered_name_with_an_ending_is_told_without(register, tmp_path, monkeypatch):
    (tmp_path / "few_recipes/recipes").mkdir(parents=True)
    (tmp_path / "few_recipes/__init__.py").touch()
    (tmp_path / "few_recipes/recipes/tiny_shapes.toml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    register("recipes", "few", "few_recipes")
    (tmp_path / "mine.toml").write_text('base = "tiny_shapes.toml"\n')
    with pytest.raises(RecipeError, match="Without a path: 'tiny_shapes'"):
        load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("value", ["a\0b", "a\udcffb"])
def test_a_path_that_no_system_has_is_refused(recipe, value):
    (problem,) = problems(recipe(), data_path=value)
    assert "[data] path: must be text that a file can hold" in problem
