"""The built-in losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from mimkit import Geometry, Grid
from mimkit.builtin.losses import L1, MSE, CrossEntropy, SmoothL1

GEOMETRY = Geometry(Grid(4, 4, 4))
VALID = torch.tensor([[[True, True, False]], [[True, False, False]]])
REGRESSIONS = [MSE, L1, SmoothL1]
ALL = [CrossEntropy, *REGRESSIONS]


def inputs(kind: type, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    prediction = torch.randn(2, 1, 3, 5).to(dtype).requires_grad_()
    if kind is CrossEntropy:
        return prediction, torch.randint(0, 5, (2, 1, 3))
    return prediction, torch.randn(2, 1, 3, 5).to(dtype)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_float32_value_per_position_also_under_autocast(kind, dtype):
    prediction, target = inputs(kind, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kind(GEOMETRY)(prediction, target, VALID)
    assert value.shape == (2, 1, 3)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("kind", ALL)
def test_padding_has_no_influence_even_if_it_is_nan(kind):
    loss = kind(GEOMETRY)
    prediction, target = inputs(kind)
    loss(prediction, target, VALID)[VALID].sum().backward()
    poisoned = prediction.detach().masked_fill(~VALID[..., None], math.nan).requires_grad_()
    if kind is CrossEntropy:
        target = target.masked_fill(~VALID, -12345)
    else:
        target = target.masked_fill(~VALID[..., None], math.nan)
    value = loss(poisoned, target, VALID)
    value[VALID].sum().backward()
    assert torch.equal(poisoned.grad, prediction.grad)
    assert poisoned.grad[~VALID].eq(0).all()
    assert poisoned.grad[VALID].abs().sum(-1).gt(0).all()


@pytest.mark.parametrize(
    ("loss", "difference", "expected"),
    [
        (MSE(GEOMETRY), [3.0, -1.0], 5.0),
        (L1(GEOMETRY), [3.0, -1.0], 2.0),
        (SmoothL1(GEOMETRY), [3.0, -0.5], (2.5 + 0.125) / 2),
        (SmoothL1(GEOMETRY, beta=4.0), [3.0, -1.0], (9 / 8 + 1 / 8) / 2),
    ],
)
def test_regressions_average_over_the_width(loss, difference, expected):
    target = torch.randn(1, 1, 1, 2)
    value = loss(target + torch.tensor(difference), target, torch.ones(1, 1, 1, dtype=torch.bool))
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_cross_entropy_of_equal_scores_is_the_log_of_the_classes():
    value = CrossEntropy(GEOMETRY)(torch.zeros(2, 1, 3, 8192), torch.ones(2, 1, 3).long(), VALID)
    torch.testing.assert_close(value[VALID], torch.full((3,), math.log(8192)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient_are_torchs(dtype):
    prediction, target = inputs(CrossEntropy, dtype)
    weights = torch.tensor([0.5, 2.0, -1.0])
    value = CrossEntropy(GEOMETRY)(prediction, target, VALID)[VALID]
    (value * weights).sum().backward()
    reference = prediction.detach().clone().requires_grad_()
    expected = F.cross_entropy(reference[VALID].float(), target[VALID], reduction="none")
    (expected * weights).sum().backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(prediction.grad, reference.grad)
    assert prediction.grad.dtype == dtype


def test_cross_entropy_is_exact_where_the_share_of_the_class_underflows():
    scores = torch.tensor([1000.25, 0.5, -300.0]).expand(2, 1, 3, 3).requires_grad_()
    target = torch.tensor([0, 1, 2]).expand(2, 1, 3)
    value = CrossEntropy(GEOMETRY)(scores, target, torch.ones(2, 1, 3, dtype=torch.bool))
    torch.testing.assert_close(value[0, 0], torch.tensor([0.0, 999.75, 1300.25]))


def test_cross_entropy_refuses_a_second_backward_pass():
    """Its gradient takes the place of what it kept: a second one would be wrong."""
    prediction, target = inputs(CrossEntropy)
    value = CrossEntropy(GEOMETRY)(prediction, target, VALID).sum()
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_cross_entropy_and_its_metrics_are_one_graph():
    loss = CrossEntropy(GEOMETRY)

    def step(prediction, target):
        value = loss(prediction, target, VALID)
        return torch.where(VALID, value, 0.0).sum(), loss.metrics(prediction, target, VALID)

    prediction, target = inputs(CrossEntropy)
    value, metrics = step(prediction, target)
    value.backward()
    again = prediction.detach().clone().requires_grad_()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    other_value, other_metrics = compiled(again, target)
    other_value.backward()
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(again.grad, prediction.grad)
    assert other_metrics == metrics


def test_compiled_cross_entropy_is_torchs_whatever_the_padding_holds():
    """Compiled it is written otherwise than eager."""
    compiled = torch.compile(CrossEntropy(GEOMETRY), fullgraph=True, backend="aot_eager")
    scores = torch.tensor([1000.25, 0.5, -300.0, 2.0, 1.0]).expand(2, 1, 3, 5).clone()
    scores[~VALID] = math.nan
    scores.requires_grad_()
    target = torch.tensor([[[0, 1, -12345]], [[2, 99, 99]]])
    value = compiled(scores, target, VALID)
    value[VALID].sum().backward()
    reference = scores.detach().requires_grad_()
    expected = F.cross_entropy(reference[VALID], target[VALID], reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(value[VALID], expected)
    torch.testing.assert_close(scores.grad[VALID], reference.grad[VALID])
    assert scores.grad[~VALID].eq(0).all()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch 2.11, of itself
def test_compiled_cross_entropy_keeps_no_copy_of_the_logits():
    logits = torch.randn(2, 1, 3, 4096, dtype=torch.bfloat16).requires_grad_()
    loss = CrossEntropy(GEOMETRY)
    # Decides what is kept as the default backend does, without its compiler.
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager_decomp_partition")
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compiled(logits, torch.zeros(2, 1, 3, dtype=torch.int64), VALID)
    assert sum(kept.values()) < 1.1 * logits.nbytes


def test_accuracy_counts_valid_positions_only():
    scores = F.one_hot(torch.tensor([[[1, 2, 0]], [[3, 4, 4]]]), 5).float()
    target = torch.tensor([[[1, 0, 0]], [[3, 4, 4]]])
    metrics = CrossEntropy(GEOMETRY).metrics(scores, target, VALID)
    assert metrics["accuracy"].item() == pytest.approx(2 / 3)


def test_majority_is_the_share_of_the_most_frequent_class_among_valid_positions():
    target = torch.tensor([[[1, 0, -5]], [[1, 0, 0]]])
    metrics = CrossEntropy(GEOMETRY).metrics(torch.randn(2, 1, 3, 5), target, VALID)
    assert metrics["majority"].item() == pytest.approx(2 / 3)


def test_without_valid_positions_no_metric_is_nan():
    metrics = CrossEntropy(GEOMETRY).metrics(
        torch.randn(2, 1, 3, 5), torch.zeros(2, 1, 3).long(), torch.zeros_like(VALID)
    )
    assert (metrics["accuracy"].item(), metrics["majority"].item()) == (0, 0)


def test_the_loss_of_even_odds_is_that_of_equal_scores():
    prediction, target = torch.zeros(2, 1, 3, 5), torch.zeros(2, 1, 3).long()
    loss = CrossEntropy(GEOMETRY)
    even = loss.metrics(prediction, target, VALID)["even"]
    torch.testing.assert_close(loss(prediction, target, torch.ones_like(VALID))[0, 0, 0], even)


def test_each_loss_says_what_it_compares():
    assert CrossEntropy.kinds == {"class"}
    assert all(kind.kinds == {"vector"} for kind in REGRESSIONS)
