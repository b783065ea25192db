"""Networks whose weights are constants."""

import torch
from torch import nn

from mimkit import freeze
from mimkit.train.guard import Guard
from mimkit.train.trial import untouched


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_a_frozen_network_computes_the_same_without_parameters_or_state():
    module, x = network().eval(), torch.randn(5, 3)
    expected = module(x)
    frozen = freeze(module.train())
    assert torch.equal(frozen(x), expected)
    assert not list(frozen.parameters())
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert frozen.state_dict().keys() == {f"1.{name}" for name in statistics}


def test_it_moves_with_the_module_that_holds_it():
    holder = nn.Module()
    holder.tokenizer = freeze(nn.Linear(3, 4))
    holder.to(torch.float64)
    assert holder.tokenizer.weight.dtype == torch.float64


def test_a_trained_network_gets_its_gradient_through_a_frozen_one():
    first, second = nn.Linear(3, 3), freeze(nn.Linear(3, 1))
    second(first(torch.randn(2, 3))).sum().backward()
    assert first.weight.grad.abs().sum() > 0
    assert second.weight.grad is None


def test_guard_and_trial_copy_no_constants():
    holder = nn.Sequential(nn.BatchNorm1d(3), freeze(nn.Linear(3, 4)))
    assert len(Guard(holder, []).saved) == 2  # running mean and variance
    with untouched(holder):
        holder[0].running_mean.fill_(7.0)
        holder[1].weight.zero_()
    assert not holder[0].running_mean.any()
    assert not holder[1].weight.any()
