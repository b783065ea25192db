"""What a tokenizer's training costs, against a count of the training itself."""

import dataclasses

import pytest
import torch
from mimkit_beit.fit import Plan
from mimkit_beit.target import DVAETokens
from mimkit_beit.tokenizer import Size
from mimkit_beit.trained import train
from mimkit_beit.work import training_flops

from mimkit import Geometry, Grid, View, count_flops

CPU = torch.device("cpu")
SIZE = Size(codebook_size=16, hidden_dim=8, num_blocks=1, code_dim=4)
PLAN = Plan(
    total_steps=50,
    first_ratio=0.4,
    batch_size=8,
    lr=5e-3,
    temperature=(1.0, 0.1),
    balance_weight=1e-3,
    kl_weight=(0.0, 1e-3),
    seed=0,
)


class Pictures:
    fingerprint = "noise"

    def __len__(self):
        return 45  # 41 of them to train on

    def view(self, index, view):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(45, 3, *view.image_size, generator=generator)[index]


@pytest.mark.parametrize("total_steps", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_it_is_what_the_training_takes(tmp_path, total_steps):
    view = View("tokens", (32, 16), mean=(-0.125,) * 3, std=(1.25,) * 3, interpolation="lanczos")
    plan = dataclasses.replace(PLAN, total_steps=total_steps)
    whole = count_flops(
        lambda: train(
            Pictures(),
            view,
            tmp_path,
            size=SIZE,
            plan=plan,
            num_images=40,
            device=CPU,
            say=lambda _: None,
        )
    )
    # Beside the steps: once, features of 40 images, k-means and the look at the health.
    once = whole - training_flops(SIZE, plan, (32, 16), 40)
    step = training_flops(SIZE, plan, (32, 16), 40) / total_steps
    assert 0 < once < 4 * step


def test_it_is_charged_to_whoever_finds_the_tokenizer_in_the_cache(tmp_path):
    geometry = Geometry(Grid(4, 4, 8), embed_dim=16)
    options = {**DVAETokens.miniature, "total_steps": 4, "batch_size": 4}
    first, second = (
        DVAETokens(geometry, **options).prepare(
            Pictures(), tmp_path, device=CPU, say=lambda _: None
        )
        for _ in range(2)
    )
    assert not first.cached
    assert second.cached
    assert first.flops == second.flops > 0
