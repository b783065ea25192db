import itertools

import pytest
import torch
from torch import nn

from mimkit.parts.part import Module
from mimkit.recipe.schema import TrainSection
from mimkit.train.optim import guard, learning_rate, make_optimizer, set_learning_rate


class Net(Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.token = nn.Parameter(torch.ones(1, 1, 2))

    def no_weight_decay(self):
        return frozenset({"token"})


def section(**changes):
    return TrainSection(
        **{"total_steps": 10, "batch_size": 2, "optimizer": "sgd", "lr": 0.1, **changes}
    )


def test_only_matrices_are_decayed_and_a_part_can_exempt_more():
    net = nn.ModuleDict({"encoder": Net()})
    optimizer = make_optimizer(net, section(weight_decay=0.05))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(net["encoder"].linear.weight)}


def test_every_trainable_parameter_is_in_exactly_one_group():
    net = Net()
    net.token.requires_grad_(False)
    optimizer = make_optimizer(net, section(optimizer="adamw", weight_decay=0.1))
    listed = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_learning_rate_warms_up_linearly_and_ends_at_the_floor():
    rates = [learning_rate(s, total=100, warmup=9, peak=1.0, floor=0.1) for s in range(101)]
    assert rates[:9] == pytest.approx([0.1 * (s + 1) for s in range(9)])
    assert rates[9] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_learning_rate_is_half_way_between_at_half_time():
    assert learning_rate(50, total=100, warmup=0, peak=1.0, floor=0.0) == pytest.approx(0.5)


def test_a_group_can_scale_the_rate():
    net = Net()
    optimizer = torch.optim.SGD([{"params": net.parameters(), "lr_scale": 0.5}], lr=1.0)
    set_learning_rate(optimizer, 0.2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_guarded_step_changes_nothing_even_if_it_is_the_first(name):
    net, reference = Net(), Net()
    reference.load_state_dict(net.state_dict())
    optimizers = [
        make_optimizer(m, section(optimizer=name, weight_decay=0.1)) for m in (net, reference)
    ]

    def step(module, optimizer, scale, finite):
        for p in module.parameters():
            p.grad = torch.full_like(p, scale)
        guard(optimizer, torch.tensor(finite))
        optimizer.step()

    step(net, optimizers[0], float("nan"), False)
    for scale in (1.0, 2.0):
        step(net, optimizers[0], scale, True)
        step(reference, optimizers[1], scale, True)
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nesterov_equals_the_plain_torch_optimizer():
    net, reference = Net(), Net()
    reference.load_state_dict(net.state_dict())
    ours = make_optimizer(net, section(momentum=0.9))
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for scale in (1.0, -0.5, 2.0):
        for module, optimizer in ((net, ours), (reference, theirs)):
            for p in module.parameters():
                p.grad = torch.full_like(p, scale)
            optimizer.step()
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)
