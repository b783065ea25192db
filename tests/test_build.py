import pytest
import torch
from torch import nn

from mimkit.errors import RecipeError
from mimkit.evaluate.base import Evaluator
from mimkit.parts.encoder import Encoder
from mimkit.parts.head import Head
from mimkit.parts.loss import Loss
from mimkit.parts.masker import Masker
from mimkit.parts.patches import take
from mimkit.parts.records import Mask, Tokens, View, Width
from mimkit.parts.target import Target
from mimkit.recipe.build import build, construct
from mimkit.recipe.schema import load

RECIPE = """\
name = "tiny"

[data]
name = "shapes"
image_size = 16
patch_size = 4

[masker]
part = "tiny"

[encoder]
part = "tiny"

[targets.patches]
part = "tiny"

[head]
part = "tiny"

[losses.patches]
part = "tiny"

[train]
total_steps = 1
batch_size = 2
optimizer = "sgd"
lr = 0.1
"""


class TinyMasker(Masker):
    def __init__(self, geometry, *, ratio: float = 0.25, hides: bool = False):
        if not 0 < ratio < 1:
            raise RecipeError(f"masker 'tiny', ratio: must be in (0, 1), but is {ratio}.")
        self.grid, self.hides = geometry.grid, hides

    def sample(self, batch_size, generator):
        masked = torch.zeros(batch_size, self.grid.num_patches, dtype=torch.bool)
        masked[:, :3] = True
        return Mask.drop(masked, self.grid)


class RaggedMasker(TinyMasker):
    ragged = True

    def __init__(self, geometry):
        super().__init__(geometry)


class TinyEncoder(Encoder):
    def __init__(self, geometry, *, embed_dim: int = 16, takes_hidden: bool = False):
        super().__init__()
        self.embed_dim, self.takes_hidden = embed_dim, takes_hidden
        self.table = nn.Embedding(geometry.grid.num_patches, embed_dim)

    def forward(self, image, context=None, hidden=None):
        patches = self.table(context)
        return Tokens(patches, patches[:, :0], context)

    def backbone(self):
        raise NotImplementedError


class TinyTarget(Target):
    def __init__(self, geometry, *, kind: str = "vector", size: int = 3, view_size: int = 0):
        super().__init__()
        self.width = Width("class" if kind == "class" else "vector", size)
        if view_size:
            self.views = (View("small", (view_size, view_size)),)
        self.bound = None
        self.embed_dim = geometry.embed_dim

    def bind(self, encoder):
        self.bound = [encoder]  # in a list, so that it is no submodule

    def forward(self, batch, encoder):
        return take(batch.image, batch.mask.target)


class TinyHead(Head):
    def __init__(self, geometry):
        super().__init__()
        self.layers = nn.ModuleDict(
            {n: nn.Linear(geometry.embed_dim, w.size) for n, w in geometry.outputs.items()}
        )

    def forward(self, tokens, mask):
        return {name: layer(tokens.patches) for name, layer in self.layers.items()}


class NeedyHead(TinyHead):
    needs_hidden = True

    def __init__(self, geometry):
        super().__init__(geometry)


class DrawingMasker(TinyMasker):
    """Draws in its constructor, which must not move the weights of what is made after it."""

    def __init__(self, geometry):
        super().__init__(geometry)
        torch.rand(7)


class TinyLoss(Loss):
    def __init__(self, geometry):
        super().__init__()

    def forward(self, prediction, target, valid):
        return (prediction - target).square().mean(-1)


class TinyEvaluator(Evaluator):
    def __init__(self, geometry, *, k: int = 1):
        if k < 1:
            raise RecipeError("evaluator 'tiny', k: must be above 0.")
        self.embed_dim = geometry.embed_dim

    def run(self, subject):
        return []


@pytest.fixture
def recipe(register, tmp_path):
    """Loads the recipe with settings."""
    for kind, name, cls in [
        ("maskers", "tiny", TinyMasker),
        ("maskers", "ragged", RaggedMasker),
        ("maskers", "drawing", DrawingMasker),
        ("encoders", "tiny", TinyEncoder),
        ("targets", "tiny", TinyTarget),
        ("heads", "tiny", TinyHead),
        ("heads", "needy", NeedyHead),
        ("losses", "tiny", TinyLoss),
        ("evaluators", "tiny", TinyEvaluator),
    ]:
        register(kind, name, cls)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return lambda *overrides, seed=0: load(str(path), overrides=overrides, seed=seed)


def made(recipe, **arguments):
    return build(recipe, mean=(0.5,) * 3, std=(0.25,) * 3, **arguments)


@pytest.mark.parametrize(("size", "rows", "cols"), [("16", 4, 4), ("[12, 20]", 3, 5)])
def test_sizes_are_settled_from_grid_to_head(recipe, size, rows, cols):
    parts = made(recipe(f"data.image_size={size}", "encoder.embed_dim=8"))
    grid = parts.geometry.grid
    assert (grid.rows, grid.cols, grid.patch_size) == (rows, cols, 4)
    assert parts.geometry.embed_dim == parts.targets["patches"].embed_dim == 8
    assert parts.outputs == parts.geometry.outputs == {"patches": Width("vector", 3)}
    assert parts.head.layers["patches"].weight.shape == (3, 8)
    assert parts.encoder.table.weight.shape == (rows * cols, 8)


def test_several_terms_may_share_a_target_and_predict_under_their_own_name(recipe):
    parts = made(
        recipe("losses.more.part=tiny", "losses.more.target=patches", "losses.more.weight=2")
    )
    assert [(t.name, t.prediction, t.target, t.weight) for t in parts.terms] == [
        ("patches", "patches", "patches", 1.0),
        ("more", "more", "patches", 2.0),
    ]
    assert set(parts.head.layers) == {"patches", "more"}


def test_the_seed_decides_the_weights(recipe):
    weight = made(recipe(seed=1)).encoder.table.weight
    assert torch.equal(weight, made(recipe(seed=1)).encoder.table.weight)
    assert not torch.equal(weight, made(recipe(seed=2)).encoder.table.weight)


def test_exchanging_one_part_leaves_the_weights_of_the_others(recipe):
    one, other = made(recipe()), made(recipe("masker.part=drawing"))
    assert torch.equal(one.encoder.table.weight, other.encoder.table.weight)
    head = one.head.layers["patches"].weight
    assert torch.equal(head, other.head.layers["patches"].weight)


def test_the_global_random_state_stays_as_it_was(recipe):
    state = torch.get_rng_state()
    made(recipe())
    assert torch.equal(state, torch.get_rng_state())


def test_on_the_meta_device_no_weights_are_made_but_masks_are_real(recipe):
    parts = made(recipe(), device="meta")
    assert all(p.is_meta for module in (parts.encoder, parts.head) for p in module.parameters())
    mask = parts.masker.sample(2, torch.Generator())
    assert mask.target.tolist() == [[[0, 1, 2]]] * 2


def test_every_target_meets_the_encoder_and_does_not_own_it(recipe):
    parts = made(recipe())
    assert parts.targets["patches"].bound == [parts.encoder]
    assert not list(parts.targets["patches"].parameters())


def test_the_first_view_is_the_encoders_and_targets_add_theirs_once(recipe):
    parts = made(
        recipe(
            "targets.patches.view_size=8",
            "targets.more={part='tiny', view_size=8}",
            "losses.more.part=tiny",
            "data.interpolation=bilinear",
        )
    )
    assert parts.views == (
        View("image", (16, 16), (0.5,) * 3, (0.25,) * 3, "bilinear"),
        View("small", (8, 8)),
    )


def test_the_recipes_own_mean_goes_before_the_data_sets(recipe):
    image = made(recipe("data.mean=[0, 0, 0]")).views[0]
    assert image.mean == (0.0, 0.0, 0.0)
    assert image.std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["masker.ratio=2"], ["tiny.toml:8, [masker]: masker 'tiny', ratio: must be in (0, 1)"]),
        (["masker.part=ragged"], ["[head]: masker 'ragged' masks more", "[targets.patches]: mask"]),
        (["masker.hides=true"], ["tiny.toml:11, [encoder]: encoder 'tiny' must show hidden"]),
        (["head.part=needy"], ["[masker]: head 'needy' reads the tokens of hidden patches"]),
        (
            ["targets.patches.kind=class"],
            ["tiny.toml:20, [losses.patches]: target 'patches' gives a class, but loss 'tiny'"],
        ),
        (
            [
                "targets.more={part='tiny', size=5}",
                "losses.more={part='tiny', prediction='patches'}",
            ],
            ["[losses.more]: prediction 'patches' must be a vector of 5 for target 'more'"],
        ),
        (
            [
                "targets.patches.view_size=8",
                "targets.more={part='tiny', view_size=4}",
                "losses.more.part=tiny",
            ],
            ["view 'small' must be the same for all parts"],
        ),
        (
            ["masker.hides=true", "targets.patches.kind=class"],
            ["[encoder]: encoder 'tiny' must show", "[losses.patches]: target 'patches' gives a"],
        ),
    ],
)
def test_parts_that_cannot_go_together_are_refused_with_their_tables(recipe, overrides, messages):
    with pytest.raises(RecipeError) as raised:
        made(recipe(*overrides))
    lines = str(raised.value).split("\n")
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert message in line


def test_a_mask_token_lets_a_hiding_masker_meet_a_head_that_needs_it(recipe):
    made(recipe("masker.hides=true", "encoder.takes_hidden=true", "head.part=needy"))


def test_an_evaluator_is_made_from_its_table_and_its_refusal_names_it(recipe):
    geometry = made(recipe()).geometry
    good = recipe("evaluate=[{part='tiny'}]")
    assert construct(good, "evaluate.0", geometry).embed_dim == 16
    with pytest.raises(RecipeError, match=r"\[evaluate\.0\]: evaluator 'tiny', k"):
        construct(recipe("evaluate=[{part='tiny', k=0}]"), "evaluate.0", geometry)
