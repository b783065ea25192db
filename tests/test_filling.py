"""Networks that are made quickly to be measured."""

import torch
from torch import nn

from mimkit.study.filling import Repeated


def test_large_weights_are_random_numbers_of_the_same_kind():
    with Repeated():
        layer = nn.Linear(700, 500)
        weight = nn.init.trunc_normal_(torch.empty(700, 500), std=0.02)
    torch.manual_seed(0)
    usual = nn.Linear(700, 500)
    assert abs(layer.weight.std() / usual.weight.std() - 1) < 0.02
    assert abs(weight.std() / 0.02 - 1) < 0.05
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
    assert len(layer.weight.unique()) <= 2**16 < layer.weight.numel()


def test_what_has_a_generator_of_its_own_or_is_small_is_drawn_as_ever():
    def draws():
        torch.manual_seed(3)
        yield torch.empty(600, 600).uniform_(generator=torch.Generator().manual_seed(1))
        yield torch.empty(9).normal_()

    expected = list(draws())
    with Repeated():
        found = list(draws())
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
