"""timm's block of BEiT, with the same parameters, computed in fewer passes over memory."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.beit import Block as TimmBlock
from torch import Tensor, nn

from mimkit import take


class Block(TimmBlock):
    """A transformer block with learned factors on its branches and a bias on its attention.

    The factors are multiplied into the last weight of each branch, not over the activations;
    stochastic depth and the sum are one pass; and on CPU, where torch has no fused attention for a
    bias that learns, the bias is added in place.

    Source: names, options and function of timm's block, from which it differs in rounding only.
    """

    def forward(
        self,
        x: Tensor,
        shared_rel_pos_bias: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Attends, then applies the MLP; to all tokens, or only to those at ``wanted``.

        Shape: x (B, T, D), bias (1 or B, heads, T, T), wanted (B, W) int64; result (B, T or W, D).
        """
        attended = self._attend(self.norm1(x), shared_rel_pos_bias, wanted)
        x = x if wanted is None else take(x, wanted)
        x = _sum(x, attended, self.drop_path1)
        mlp: Any = self.mlp
        hidden = mlp.act(mlp.fc1(self.norm2(x)))
        return _sum(x, _scaled(hidden, mlp.fc2, self.gamma_2), self.drop_path2)

    def _attend(self, x: Tensor, bias: Tensor | None, wanted: Tensor | None) -> Tensor:
        attn: Any = self.attn
        if attn.relative_position_bias_table is not None:
            rows = attn.relative_position_bias_table[attn.relative_position_index]
            bias = rearrange(rows, "query key h -> 1 h query key").contiguous()
        weight, biases = attn.qkv.weight, (attn.q_bias, attn.k_bias, attn.v_bias)
        if wanted is None:
            qkv = F.linear(x, weight, torch.cat(biases))
            query, key, value = _heads(qkv, 3, attn.num_heads)
        else:
            dim = x.shape[-1]
            (query,) = _heads(F.linear(take(x, wanted), weight[:dim], biases[0]), 1, attn.num_heads)
            key, value = _heads(F.linear(x, weight[dim:], torch.cat(biases[1:])), 2, attn.num_heads)
            bias = None if bias is None else _rows(bias, wanted)
        joined = rearrange(_attention(query, key, value, bias), "b h t d -> b t (h d)")
        return _scaled(joined, attn.proj, self.gamma_1)


def _heads(joined: Tensor, parts: int, num_heads: int) -> Tensor:
    return rearrange(joined, "b t (parts h d) -> parts b h t d", parts=parts, h=num_heads)


def _rows(bias: Tensor, wanted: Tensor) -> Tensor:
    """Gives the bias of the queries at ``wanted``, (B, heads, W, T)."""
    by_query = bias.transpose(1, 2)  # (1 or B, T, heads, T)
    if len(by_query) > 1:
        return take(by_query, wanted).transpose(1, 2)
    # Looked up in one table, whose gradient is one table; not in a copy of it for each image.
    picked = F.embedding(wanted, by_query[0].flatten(1))
    return rearrange(picked, "b w (h t) -> b h w t", h=bias.shape[1])


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    learns = bias is not None and bias.requires_grad
    if bias is None or not learns or query.device.type != "cpu" or query.dtype != torch.float32:
        mask = None if bias is None else _aligned(bias.to(query.dtype))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, T, T)
    scores += bias
    attended: Tensor = scores.softmax(dim=-1) @ value
    return attended


def _aligned(bias: Tensor) -> Tensor:
    """Lets every row of a bias begin at a multiple of 8 elements, as GPUs' fused kernels demand.

    With a class token there is no such multiple: 14 x 14 patches make rows of 197. Compiled, a bias
    that begins elsewhere has been read at a wrong address. Cast it before: a cast packs the rows.
    """
    num_keys = bias.shape[-1]
    return F.pad(bias, (0, -num_keys % 8))[..., :num_keys]


def _scaled(x: Tensor, linear: nn.Linear, factors: Tensor | None) -> Tensor:
    """Applies a linear layer whose outputs are then multiplied by ``factors``."""
    if factors is None:
        return F.linear(x, linear.weight, linear.bias)
    return F.linear(x, factors[:, None] * linear.weight, factors * linear.bias)


def _sum(x: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
    """Adds a branch, which ``drop_path`` leaves out for some images; its type is that of ``x``."""
    # A factor of 1 / 0.9 in bfloat16 would be wrong by 0.2 %, for every image alike.
    ones = x.new_ones(x.shape[0], 1, 1, dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.addcmul(x, branch, drop_path(ones)).to(x.dtype)
