"""CAE's block: the same numbers as timm's."""

import pytest
import torch
from mimkit_cae.block import Block
from timm.models import beit as timm_beit


@pytest.mark.parametrize("factors", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_timms(factors, training):
    found, weights = [], None
    for made in (timm_beit.Block, Block):
        torch.manual_seed(0)
        block = made(16, 2, qkv_bias=True, init_values=factors, drop_path=0.4).train(training)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        weights = weights or block.state_dict()
        block.load_state_dict(weights)
        x = torch.randn(6, 5, 16, requires_grad=True)
        torch.manual_seed(2)  # the same branches are dropped
        y = block(x)
        y.square().mean().backward()
        found.append([y.detach(), x.grad, *(parameter.grad for parameter in block.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
