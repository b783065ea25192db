"""The linear head."""

import pytest
import torch

from mimkit import BoundaryError, Geometry, Mask, Tokens, Width
from mimkit.builtin.heads import LinearHead


@pytest.fixture
def mask(grid) -> Mask:
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, [2, 5, 11]] = True
    masked[1, [0, 7]] = True
    return Mask.replace(masked, grid)


def tokens(index: torch.Tensor) -> Tokens:
    patches = torch.randn(*index.shape, 16)
    return Tokens(patches, patches[:, :0], index)


def test_it_predicts_every_output_at_the_targets(grid, mask):
    outputs = {"ids": Width("class", 7), "pixels": Width("vector", 48)}
    head = LinearHead(Geometry(grid, embed_dim=16, outputs=outputs))
    given = tokens(mask.target.flatten(1))
    predictions = head(given, mask)
    assert {name: value.shape for name, value in predictions.items()} == {
        "ids": (2, 1, 3, 7),
        "pixels": (2, 1, 3, 48),
    }
    expected = head.predictors["ids"](given.patches[0, 1])
    torch.testing.assert_close(predictions["ids"][0, 0, 1], expected)


def test_it_refuses_other_tokens_than_those_at_the_targets(grid, mask):
    head = LinearHead(Geometry(grid, embed_dim=16, outputs={"ids": Width("class", 7)}))
    with pytest.raises(BoundaryError, match=r"3 of them are expected, but 16 came"):
        head(tokens(mask.context), mask)


@pytest.mark.parametrize(("cut", "std"), [(False, 0.02), (True, 0.0108)])
def test_start_values_can_be_cut_at_one_deviation(grid, cut, std):
    torch.manual_seed(0)
    outputs = {"ids": Width("class", 8192)}
    weight = (
        LinearHead(Geometry(grid, embed_dim=64, outputs=outputs), cut_init=cut)
        .predictors["ids"]
        .weight
    )
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert (weight.abs().max().item() <= 0.02) is cut
