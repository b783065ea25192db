"""timm's block of BEiT, with the same parameters, computed in fewer passes over memory."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.beit import Block as TimmBlock
from torch import Tensor, nn


class Block(TimmBlock):
    """A transformer block with learned factors on its branches and a bias on its attention.

    The factors are multiplied into the last weight of each branch, not over the activations;
    stochastic depth and the sum are one pass; and on CPU, where torch has no fused attention for a
    bias that learns, the bias is added in place.

    Source: names, options and function of timm's block, from which it differs in rounding only.
    """

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attends, then applies the MLP.

        Shape: x (B, T, D), bias (1 or B, heads, T, T); result (B, T, D).
        """
        attended = self._attend(self.norm1(x), shared_rel_pos_bias)
        x = _sum(x, attended, self.drop_path1)
        mlp: Any = self.mlp
        hidden = mlp.act(mlp.fc1(self.norm2(x)))
        return _sum(x, _scaled(hidden, mlp.fc2, self.gamma_2), self.drop_path2)

    def _attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        attn: Any = self.attn
        qkv = F.linear(x, attn.qkv.weight, torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]))
        query, key, value = rearrange(
            qkv, "b t (three h d) -> three b h t d", three=3, h=attn.num_heads
        )
        if attn.relative_position_bias_table is not None:
            rows = attn.relative_position_bias_table[attn.relative_position_index]
            bias = rearrange(rows, "query key h -> 1 h query key").contiguous()
        joined = rearrange(_attention(query, key, value, bias), "b h t d -> b t (h d)")
        return _scaled(joined, attn.proj, self.gamma_1)

    if TYPE_CHECKING:
        __call__ = forward


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    learns = bias is not None and bias.requires_grad
    if bias is None or not learns or query.device.type != "cpu" or query.dtype != torch.float32:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, T, T)
    scores += bias
    attended: Tensor = scores.softmax(dim=-1) @ value
    return attended


def _scaled(x: Tensor, linear: nn.Linear, factors: Tensor | None) -> Tensor:
    """Applies a linear layer whose outputs are then multiplied by ``factors``."""
    if factors is None:
        return F.linear(x, linear.weight, linear.bias)
    return F.linear(x, factors[:, None] * linear.weight, factors * linear.bias)


def _sum(x: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
    """Adds a branch, which ``drop_path`` leaves out for some images."""
    return torch.addcmul(x, branch, drop_path(x.new_ones(x.shape[0], 1, 1)))
