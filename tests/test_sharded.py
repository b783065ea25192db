"""`train.parallel = "fsdp"`: as "ddp" to rounding, checkpoints of any number of processes."""

import json

import pytest
import torch
from processes import HERE, finish, torchrun
from torch import nn

from mimkit.errors import RecipeError
from mimkit.parts.part import Module
from mimkit.recipe.schema import TrainSection
from mimkit.train.sharding import refuse_unshardable, units_of

RECIPES = HERE.parent / "recipes"
METHODS = {
    "mae": ("mae_shapes", []),
    "beit": ("beit_shapes", []),
    "cae": ("cae_shapes", []),
    "selfie": ("crossovers/pointer_on_vit", []),
    "lagging": ("cae_shapes", ["targets.latent.lag=true"]),
    "moving": ("cae_shapes", ["targets.latent.momentum=0.9"]),
    "live": ("cae_shapes", ["targets.latent.detach=false"]),
}


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
def test_every_method_ends_as_with_ddp(tmp_path):
    cases = [
        json.dumps({"name": name, "recipe": str(RECIPES / f"{file}.toml"), "settings": settings})
        for name, (file, settings) in METHODS.items()
    ]
    finish(torchrun(2, HERE / "spread.py", tmp_path, *cases))
    for name in METHODS:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found, name
        assert max(found.values()) < 1e-6, (name, found)
