"""Fixtures of several test files."""

import pytest
import torch
from hypothesis import settings

from mimkit import Batch, Geometry, Grid, Mask, Subject
from mimkit.data.opening import open_source
from mimkit.data.pixels.augment import Augment
from mimkit.recipe import registry
from mimkit.recipe.build import build
from mimkit.recipe.schema import load
from mimkit.train.step import Pretrainer

settings.register_profile("untimed", deadline=None)  # speed is a benchmark, never a test
settings.load_profile("untimed")

TINY = """\
name = "tiny"
[data]
name = "shapes"
image_size = 16
patch_size = 4
num_images = 48
num_test_images = 16
[augment]
crop = "pad"
[masker]
part = "random"
mask_ratio = 0.5
mode = "replace"
[encoder]
part = "vit"
embed_dim = 16
depth = 2
num_heads = 2
mask_token = true
drop_path = 0.2
[targets.pixels]
part = "pixels"
[head]
part = "linear"
[losses.pixels]
part = "mse"
[train]
total_steps = 12
batch_size = 8
optimizer = "adamw"
lr = 1e-3
weight_decay = 0.05
log_every_steps = 2
checkpoint_every_steps = 2
[[evaluate]]
part = "heldout"
every_steps = 6
"""


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """What is printed has no width and no colours, whatever the surroundings say.

    pytest-xdist, for one, gives its workers the width of the terminal that they were started from.
    """
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def register(monkeypatch):
    """Replaces what is installed: ``register(kind, name, class or "module:name")`` adds a part."""
    points = {}
    monkeypatch.setattr(registry, "_entry_points", lambda group: points.get(group, []))

    def add(kind, name, value, *, distribution="mimkit-tiny", version="1.0"):
        path = value if isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"
        point = registry.Point(name, path, distribution, version)
        points.setdefault(f"mimkit.{kind}", []).append(point)

    return add


@pytest.fixture
def grid():
    return Grid(4, 4, 4)


@pytest.fixture(params=[Grid(4, 4, 4), Grid(3, 5, 4)], ids=["4x4", "3x5"])
def any_grid(request):
    return request.param


@pytest.fixture
def geometry(grid):
    return Geometry(grid, embed_dim=16)


@pytest.fixture
def make_batch():
    """Makes a batch of random images for given masks."""

    def make(mask: Mask) -> Batch:
        num_images = mask.context.shape[0]
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(num_images, 3, *mask.grid.image_size, generator=generator)
        index = torch.arange(num_images)
        return Batch({"image": image}, mask, None, index)

    return make


@pytest.fixture
def tiny(tmp_path):
    """A recipe file whose run takes a second: every part is built in, images are drawn."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def subject(tiny, tmp_path):
    """The tiny recipe untrained, with 120 + 40 labelled images, as evaluators get it."""
    recipe = load(str(tiny), overrides=["data.num_images=120", "data.num_test_images=40"])
    train, test = open_source(recipe.data, "train"), open_source(recipe.data, "test")

    def fresh(seed):
        again = recipe.model_copy(update={"seed": seed})
        return Pretrainer(build(again, mean=train.mean, std=train.std))

    parts = build(recipe, mean=train.mean, std=train.std)
    return Subject(
        pretrainer=Pretrainer(parts),
        masker=parts.masker,
        views=parts.views,
        train=train,
        test=test,
        augment=Augment(**recipe.augment.model_dump()),
        device=torch.device("cpu"),
        seed=0,
        batch_size=8,
        fresh=fresh,
        workdir=tmp_path / "work",
        report=lambda _: None,
    )
