"""From the encoder's width to the head's. Source: CAE's released code; the paper has none."""

import torch.nn.functional as F
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from mimkit import Module


class Projection(Module):
    """A linear layer and a norm, for what the encoder says of visible and of masked patches.

    Args:
        embed_dim: D, the encoder's width.
        head_dim: E, the head's.
    """

    def __init__(self, embed_dim: int, head_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, head_dim)
        self.norm = LayerNorm(head_dim)  # eps 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Projects.

        Shape: (..., D) to (..., E).
        """
        projected: Tensor = self.norm(self.linear(x))
        return projected

    def held(self, x: Tensor) -> Tensor:
        """Projects with weights that get no gradient from it.

        Shape: (..., D) to (..., E).
        """
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        projected = F.linear(x, weights["linear.weight"], weights["linear.bias"])
        shape = (self.linear.out_features,)
        return F.layer_norm(
            projected, shape, weights["norm.weight"], weights["norm.bias"], self.norm.eps
        )
