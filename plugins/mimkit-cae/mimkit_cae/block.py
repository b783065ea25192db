"""timm's block, with the same parameters, computed in fewer passes over memory."""

import torch
from timm.models.beit import Block as TimmBlock
from torch import Tensor, nn


class Block(TimmBlock):
    """A transformer block with learned factors on its branches.

    Source: names, options and function of timm's block, from which it differs in rounding only.
    """

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attends, then applies the MLP.

        Shape: (B, T, D).
        """
        attended = self.attn(self.norm1(x), shared_rel_pos_bias)
        x = add_branch(x, attended, self.gamma_1, self.drop_path1)
        return add_branch(x, self.mlp(self.norm2(x)), self.gamma_2, self.drop_path2)


def add_branch(x: Tensor, branch: Tensor, factors: Tensor | None, drop_path: nn.Module) -> Tensor:
    """Adds a branch of a block in one pass.

    Args:
        x: (B, T, D).
        branch: (B, T, D).
        factors: (D,), what each feature of the branch is multiplied by; None for 1.
        drop_path: stochastic depth, which leaves the branch out for some images.

    Shape: (B, T, D), of the type of ``x``.
    """
    ones = x.new_ones(x.shape[0], 1, 1, dtype=torch.promote_types(x.dtype, torch.float32))
    # What multiplies the branch is combined first, while it is still one row an image.
    scaled = drop_path(ones if factors is None else factors * ones)
    return torch.addcmul(x, branch, scaled).to(x.dtype)
