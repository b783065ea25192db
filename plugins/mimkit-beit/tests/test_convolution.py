"""The convolution with more channels: the same values, and no more work that is counted."""

import torch
import torch.nn.functional as F
from mimkit_beit.convolution import aligned_convolution

from mimkit import count_flops


def operands():
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 7, 7, generator=draws)
    return torch.randn(2, 3, 16, 24, generator=draws), weight


def plain(image, weight):
    return F.conv2d(image, weight, padding="same")


def test_channels_of_zeros_change_no_value():
    torch.testing.assert_close(aligned_convolution(*operands()), plain(*operands()))


def test_they_are_not_counted_as_work():
    flops = count_flops(lambda: aligned_convolution(*operands()))
    assert flops == count_flops(lambda: plain(*operands())) > 0


def test_what_compilers_are_told_of_it_is_true():
    torch.library.opcheck(aligned_convolution, operands())
