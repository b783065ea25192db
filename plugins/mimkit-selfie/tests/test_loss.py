"""The pointer loss: values, padding, pictures."""

import math

import pytest
import torch
from mimkit_selfie.loss import PointerLoss

from mimkit import Batch, Geometry, Grid, Mask, patchify, take

GRID = Grid(rows=4, cols=4, patch_size=8)
GEOMETRY = Geometry(GRID, embed_dim=16)
VALID = torch.tensor([[[True, True, True]], [[True, True, False]]])


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 1, 3, 16).requires_grad_(), torch.randn(2, 1, 3, 16).requires_grad_()


@pytest.mark.parametrize(("logit_scale", "factor"), [("none", 1.0), ("sqrt_dim", 0.25)])
def test_it_is_the_cross_entropy_over_the_valid_candidates_of_the_image(logit_scale, factor):
    query, candidate = inputs()
    value = PointerLoss(GEOMETRY, logit_scale=logit_scale)(query, candidate, VALID)
    for image, num_valid in ((0, 3), (1, 2)):
        for row in range(num_valid):
            scores = candidate[image, 0, :num_valid] @ query[image, 0, row] * factor
            expected = -scores.log_softmax(0)[row]
            torch.testing.assert_close(value[image, 0, row], expected)


@pytest.mark.parametrize("num_targets", [4, 12])
def test_queries_that_know_nothing_score_the_log_of_the_candidates(num_targets):
    query = torch.zeros(2, 1, num_targets, 16)
    candidate = torch.randn(2, 1, num_targets, 16)
    valid = torch.ones(2, 1, num_targets, dtype=torch.bool)
    loss = PointerLoss(GEOMETRY)
    value = loss(query, candidate, valid)
    torch.testing.assert_close(value, torch.full_like(value, math.log(num_targets)))
    metrics = loss.metrics(query, candidate, valid)
    assert metrics["chance"].item() == pytest.approx(1 / num_targets)
    assert metrics["accuracy"].item() == pytest.approx(1 / num_targets)


def test_reordering_queries_and_candidates_together_reorders_the_loss():
    query, candidate = inputs()
    valid = torch.ones_like(VALID)
    order, loss = [2, 0, 1], PointerLoss(GEOMETRY)
    value = loss(query, candidate, valid)
    torch.testing.assert_close(
        loss(query[:, :, order], candidate[:, :, order], valid), value[:, :, order]
    )


def test_padding_has_no_influence_even_if_it_is_nan():
    query, candidate = inputs()
    loss = PointerLoss(GEOMETRY)
    loss(query, candidate, VALID)[VALID].sum().backward()
    bad_query, bad_candidate = (
        tensor.detach().masked_fill(~VALID[..., None], math.nan).requires_grad_()
        for tensor in (query, candidate)
    )
    loss(bad_query, bad_candidate, VALID)[VALID].sum().backward()
    assert torch.equal(bad_query.grad, query.grad)
    assert torch.equal(bad_candidate.grad, candidate.grad)
    assert bad_candidate.grad[~VALID].eq(0).all()


def test_an_image_without_any_valid_target_gives_no_nan():
    query, candidate = inputs()
    nothing = VALID.clone()
    nothing[1] = False
    value = PointerLoss(GEOMETRY)(query, candidate, nothing)
    assert value.isfinite().all()
    assert all(
        metric.isfinite()
        for metric in PointerLoss(GEOMETRY).metrics(query, candidate, nothing).values()
    )


def test_gradient_reaches_query_and_candidate():
    query, candidate = inputs()
    PointerLoss(GEOMETRY)(query, candidate, VALID)[VALID].sum().backward()
    assert query.grad[VALID].abs().sum(-1).gt(0).all()
    assert candidate.grad[VALID].abs().sum(-1).gt(0).all()


def test_the_product_is_float32_under_autocast():
    query, candidate = inputs()
    loss = PointerLoss(GEOMETRY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(query, candidate, VALID)
        low = loss(query.bfloat16(), candidate.bfloat16(), VALID)
    assert inside.dtype == low.dtype == torch.float32
    assert torch.equal(inside, loss(query, candidate, VALID))


def test_the_picture_shows_the_chosen_patch_at_each_hidden_place():
    target = torch.tensor([[[1, 5, 9]], [[2, 3, 0]]])  # the last one of image 1 is padding
    context = torch.arange(16).expand(2, -1)
    mask = Mask(GRID, context, torch.zeros(2, 16, dtype=torch.bool), target, VALID)
    image = torch.randn(2, 3, 32, 32)
    batch = Batch({"image": image}, mask, None, torch.arange(2))
    candidate = torch.eye(16)[:3].expand(2, 1, 3, 16)
    chosen = torch.tensor([[0, 2, 1], [1, 0, 0]])
    query = candidate[:, 0].gather(1, chosen[..., None].expand(-1, -1, 16))[:, None]
    [picture] = PointerLoss(GEOMETRY).render(query, candidate, batch)
    assert picture.correct.tolist() == [[[True, False, False]], [[False, False, False]]]
    expected = patchify(image, 8).clone()
    expected[0, [1, 5, 9]] = expected[0, [1, 9, 5]]
    expected[1, [2, 3]] = expected[1, [3, 2]]
    assert torch.equal(patchify(picture.image, 8), expected)
    assert torch.equal(take(patchify(picture.image, 8), context), expected)
