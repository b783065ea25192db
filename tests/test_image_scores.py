import numpy as np
import pytest
import torch

from mimkit.errors import DataError
from mimkit.evaluate.image_scores import pack, unpack


@pytest.mark.parametrize("out_of", [1, 10, 255, 256, 65_535])
def test_what_was_packed_comes_back(out_of):
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(0, out_of + 1, (300,), generator=generator)
    assert np.array_equal(unpack(pack(points, out_of)), points.double().numpy() / out_of)


def test_right_and_wrong_take_two_bits_an_image():
    correct = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) < 0.4
    assert len(pack(correct)) < 10_000 / 8 * 2


@pytest.mark.parametrize("text", ["", "1:", "1:####", "1:AAAA", "0:eJwDAAAAAAE=", "x:eJwDAAAAAAE="])
def test_what_is_damaged_is_refused(text):
    with pytest.raises(DataError, match="image_scores must be what mimkit wrote"):
        unpack(text)
