"""The alignment loss: values, padding, the watch for collapse, its picture."""

import math

import pytest
import torch
from mimkit_cae.loss import AlignmentLoss

from mimkit import Batch, Geometry, Grid, Mask, patchify

GRID = Grid(3, 5, 4)
VALID = torch.tensor([[[True, True, True]], [[True, True, False]]])


@pytest.fixture
def loss():
    return AlignmentLoss(Geometry(GRID, embed_dim=6))


@pytest.fixture
def vectors():
    torch.manual_seed(0)
    return torch.randn(2, 1, 3, 6), torch.randn(2, 1, 3, 6)


def test_it_is_the_mean_squared_difference_in_float32(loss, vectors):
    prediction, target = vectors
    value = loss(prediction.bfloat16(), target.bfloat16(), VALID)
    expected = (prediction.bfloat16().float() - target.bfloat16().float()).square().mean(-1)
    assert value.dtype == torch.float32
    assert torch.equal(value[VALID], expected[VALID])


def test_unrelated_normalised_vectors_differ_by_two(loss):
    torch.manual_seed(0)
    prediction, target = torch.nn.functional.layer_norm(torch.randn(2, 8, 1, 98, 64), (64,))
    value = loss(prediction, target, torch.ones(8, 1, 98, dtype=torch.bool))
    assert value.mean().item() == pytest.approx(2.0, abs=0.05)


def test_padding_has_no_influence_even_if_it_is_nan(loss, vectors):
    prediction, target = (tensor.clone() for tensor in vectors)
    clean = loss.metrics(prediction, target, VALID)
    prediction[~VALID], target[~VALID] = math.nan, math.nan
    prediction.requires_grad_()
    loss(prediction, target, VALID)[VALID].sum().backward()
    assert prediction.grad.isfinite().all()
    assert loss.metrics(prediction.detach(), target, VALID) == clean


def test_the_watch_is_the_deviation_from_position_to_position(loss, vectors):
    prediction, target = vectors
    metrics = loss.metrics(prediction, target, VALID)
    for name, value in (("prediction_std", prediction), ("target_std", target)):
        torch.testing.assert_close(metrics[name], value[VALID].std(0).mean())


def test_an_encoder_that_says_the_same_of_every_patch_is_seen(loss, vectors):
    prediction, _ = vectors
    same = torch.randn(6).expand(2, 1, 3, 6)
    metrics = loss.metrics(prediction, same, VALID)
    assert metrics["target_std"].item() == pytest.approx(0, abs=1e-6)
    assert metrics["prediction_std"].item() > 0.5


def test_one_position_has_no_deviation_and_no_nan(loss, vectors):
    only = torch.zeros_like(VALID)
    only[0, 0, 0] = True
    assert loss.metrics(*vectors, only)["target_std"].item() == 0


def test_its_picture_shows_where_the_prediction_is_wrong(loss):
    masked = torch.zeros(2, 15, dtype=torch.bool)
    masked[:, [3, 7]] = True
    mask = Mask.drop(masked, GRID)
    batch = Batch({"image": torch.randn(2, 3, *GRID.image_size)}, mask, None, torch.arange(2))
    target = torch.zeros(2, 1, 2, 6)
    prediction = target.clone()
    prediction[0, 0, 1] = 5.0
    (picture,) = loss.render(prediction, target, batch)
    assert picture.image.shape == (2, 3, *GRID.image_size)
    assert (picture.view.mean, picture.view.std) == ((0.0,) * 3, (1.0,) * 3)
    cells = patchify(picture.image, 4)
    right, wrong, visible = cells[0, 3], cells[0, 7], cells[0, 0]
    assert right.eq(1).all()
    assert wrong[2].eq(0).all()
    assert wrong[0].ge(0.8).all()
    assert visible.eq(visible[0, 0, 0]).all()
    assert torch.equal(cells[1, 7], right)


def test_a_collapse_is_told():
    loss = AlignmentLoss(Geometry(GRID, embed_dim=8))
    valid = torch.ones(2, 1, 5, dtype=torch.bool)
    same = torch.randn(8).expand(2, 1, 5, 8)
    apart = torch.randn(2, 1, 5, 8)

    def warning(target):
        metrics = loss.metrics(apart, target, valid)
        return loss.warning({name: value.item() for name, value in metrics.items()})

    assert warning(apart) is None
    assert "the encoder is collapsing" in warning(same + 0.01 * apart)
