"""The classifier of the attentive probe: one cross-attention over all tokens."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.errors import RecipeError
from mimkit.parts.part import Module

_EPSILON: Final = 1e-6
_INIT_STD: Final = 0.02
_OUTPUT_STD: Final = 0.01
_MOST_HEADS: Final = 12


class AttentiveClassifier(Module):
    """Pools tokens by one query's attention, then classifies.

    There is but one query, so keys and values need not be made token by token: its product with
    every key is the token's with a vector for each head, and the sum of values is the value of a
    sum. That is the same function at a fraction of the cost.

    Args:
        embed_dim: D, the tokens' width.
        num_classes: width of the output.
        num_heads: attention heads; divides D.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(embed_dim))
        self.norm_query = nn.LayerNorm(embed_dim, eps=_EPSILON)
        # The norms of keys and values: tokens come standardised. What shifts all keys alike moves
        # all scores of a head alike, which attention does not notice, and what shifts values or
        # sums is taken off again by batch norm: neither is there.
        self.key_scale = nn.Parameter(torch.ones(embed_dim))
        self.value_scale = nn.Parameter(torch.ones(embed_dim))
        self.to_query = nn.Linear(embed_dim, embed_dim)
        self.to_key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_value = nn.Linear(embed_dim, embed_dim, bias=False)
        self.project = nn.Linear(embed_dim, embed_dim, bias=False)
        self.batch_norm = nn.BatchNorm1d(embed_dim, eps=_EPSILON, affine=False)
        self.output = nn.Linear(embed_dim, num_classes)
        for layer in (self.to_query, self.to_key, self.to_value, self.project):
            nn.init.trunc_normal_(layer.weight, std=_INIT_STD)
        nn.init.normal_(self.output.weight, std=_OUTPUT_STD)
        nn.init.zeros_(self.to_query.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Gives logits: standardised tokens (B, T, D) to (B, num_classes)."""
        heads = self.num_heads
        query = self.to_query(self.norm_query(self.query)).view(heads, -1)  # (H, D / H)
        key = self.to_key.weight.view(heads, query.shape[1], -1)  # (H, D / H, D)
        value = self.to_value.weight.view_as(key)
        towards = torch.einsum("hc,hcd->hd", query, key) * self.key_scale  # (H, D)
        scores = tokens @ towards.T * query.shape[1] ** -0.5  # (B, T, H)
        gathered = scores.softmax(dim=1).transpose(1, 2) @ tokens * self.value_scale  # (B, H, D)
        summed = torch.einsum("bhd,hcd->bhc", gathered, value).flatten(1)  # (B, D)
        scored: Tensor = self.output(self.batch_norm(self.project(summed)))
        return scored


def choose_heads(embed_dim: int, num_heads: int | None) -> int:
    """Returns ``num_heads``, or for None the largest number of up to 12 that divides the width.

    Raises: RecipeError if it does not divide the width.
    """
    if num_heads is None:
        return max(n for n in range(1, _MOST_HEADS + 1) if embed_dim % n == 0)
    if num_heads < 1 or embed_dim % num_heads:
        raise RecipeError(
            f"evaluator 'attentive_probe', num_heads: must divide the tokens' width {embed_dim}, "
            f"but is {num_heads}."
        )
    return num_heads


def standardise(tokens: Tensor) -> Tensor:
    """Gives every token mean 0 and deviation 1 over its values, in float32."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=_EPSILON)
