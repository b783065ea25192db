"""How much each patch of an image is looked at by a transformer's block."""

from torch import Tensor


def patch_attention(
    query: Tensor, key: Tensor, num_prefix: int, bias: Tensor | None = None
) -> Tensor:
    """Gives the attention that the first prefix token pays to each patch, as one mean over heads.

    Without a prefix token it is the mean over the patches that look.

    >>> query = key = torch.randn(2, 3, 5, 8)  # 3 heads; a class token and 4 patches
    >>> patch_attention(query, key, 1).sum(dim=1)
    tensor([1., 1.])

    Args:
        query: (B, heads, T, d), not yet scaled; T counts prefix tokens, then patches.
        key: (B, heads, T, d).
        num_prefix: R, how many prefix tokens come before the patches.
        bias: what is added to the scaled products, broadcast to (B, heads, T, T); None for nothing.

    Shape: (B, T - R) float32; the patches of an image sum to 1, whatever goes to prefix tokens.
    """
    scores = query.float() * query.shape[-1] ** -0.5 @ key.float().transpose(-2, -1)
    if bias is not None:
        scores = scores + bias.float()
    weights = scores.softmax(dim=-1).mean(dim=1)  # (B, T, T)
    looks = weights[:, 0] if num_prefix else weights.mean(dim=1)
    patches = looks[:, num_prefix:]
    shares: Tensor = patches / patches.sum(dim=-1, keepdim=True)
    return shares
