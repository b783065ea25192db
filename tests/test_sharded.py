"""`train.parallel = "fsdp"`: as "ddp" to rounding, checkpoints of any number of processes."""

import json

import pytest
import torch
from processes import HERE, finish, torchrun
from test_resume_recipes import RECIPES, miniature
from torch import nn

from mimkit.errors import RecipeError
from mimkit.parts.part import Module
from mimkit.recipe.build import build
from mimkit.recipe.schema import TrainSection
from mimkit.train.sharding import refuse_unshardable, units_of
from mimkit.train.step import Pretrainer

SHIPPED = HERE.parent / "recipes"
VARIANTS = {
    "lagging": ["targets.latent.lag=true"],
    "moving": ["targets.latent.momentum=0.9"],
    "live": ["targets.latent.detach=false"],
}
"""Of a target that reads the encoder: spread, it must do so as if it were whole."""


def section(**changes):
    return TrainSection(total_steps=1, batch_size=2, lr=0.1, **{"optimizer": "adamw", **changes})


class Blocks(Module):
    def __init__(self, block):
        super().__init__()
        self.blocks = nn.ModuleList([block, nn.Identity()])
        self.head = nn.Linear(2, 2)


def test_units_are_members_of_lists_that_have_weights():
    inner = Blocks(nn.Linear(2, 2))
    outer = Blocks(inner)
    assert units_of(outer) == [inner.blocks[0], inner]


def test_batch_norm_is_refused_with_its_name_and_the_way_out():
    with pytest.raises(RecipeError, match=r"blocks\.0.*train\.parallel=ddp"):
        refuse_unshardable(Blocks(nn.BatchNorm2d(2)), section())


def test_sgd_and_weights_without_axes_are_refused():
    module = Blocks(nn.Linear(2, 2))
    refuse_unshardable(module, section())
    with pytest.raises(RecipeError, match="fused SGD"):
        refuse_unshardable(module, section(optimizer="sgd"))
    module.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(RecipeError, match="without axes \\(scale\\)"):
        refuse_unshardable(module, section())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_recipe_ends_as_with_ddp_or_is_refused(tmp_path):
    cases = {path.stem: (path, []) for path in RECIPES}
    cases |= {name: (SHIPPED / "cae_shapes.toml", one) for name, one in VARIANTS.items()}
    told = [
        json.dumps({"name": name, "recipe": str(path), "settings": settings})
        for name, (path, settings) in cases.items()
    ]
    finish(torchrun(2, HERE / "spread.py", tmp_path, *told))
    for name, (path, _) in cases.items():
        found = json.loads((tmp_path / f"{name}.json").read_text())
        if "refused" in found:
            assert has_batch_norm(path), (name, found)
        else:
            assert found["differences"], name
            assert max(found["differences"].values()) < 1e-6, (name, found)


def has_batch_norm(path):
    recipe = miniature(path)
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3, device="meta")
    return any("BatchNorm" in type(one).__name__ for one in Pretrainer(parts).modules())
