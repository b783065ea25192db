"""What the shape of a cloud of features says of it, without labels: pure functions of numbers.

All are computed in float64 on the CPU. Features that hold NaN or an infinity have no such number:
NaN.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_FIRST_RANK: Final = 4
_LAST_RANK: Final = 100
_LEAST_RANKS: Final = 5
_NOTHING: Final = 1e-12
"""Share of the largest eigenvalue below which one is rounding: features come in float32."""
_WITHIN: Final = 1e-4
_TEMPERATURE: Final = 2.0
_DEAD: Final = 0.01


def effective_rank(weights: Tensor) -> float:
    """Gives the exponential of the entropy of weights that are made to sum to 1.

    >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 6)
    2.0

    Shape: (n,), none negative. Returns: 0 where all are zero.
    Source: Roy & Vetterli, The effective rank, 2007.
    """
    total = weights.sum()
    if total == 0:
        return 0.0
    return math.exp(torch.special.entr(weights / total).sum())


def rankme(features: Tensor) -> float:
    """Gives the effective rank of features by their singular values, which are not centred.

    It lies between 1 and the smaller of images and width; more was better in the paper.

    >>> round(rankme(torch.eye(4)), 6)
    4.0

    Shape: (n, D).
    Source: RankMe, Garrido et al., arXiv 2210.02885, equation 1; its epsilon of 1e-7 is left out,
        as 0 ln 0 is 0.
    """
    if not _is_finite(features):
        return math.nan
    return effective_rank(torch.linalg.svdvals(_exact(features)))


def decay(features: Tensor) -> float:
    """Gives the exponent alpha with which the eigenvalues of the covariance fall: rank^-alpha.

    By a straight line through the logarithms of ranks 4 to 100, or as many as there are, weighted
    by 1 / rank. Near 1 was best in the paper: far above it few directions hold all.

    Shape: (n, D). Returns: NaN where fewer than five such eigenvalues are above zero.
    Source: alpha-ReQ, Agrawal et al., NeurIPS 2022; ranks and weights as in its code, which has
        them from Stringer et al., Nature 571, 2019. The paper does not say the range.
    """
    if not _is_finite(features) or len(features) < 2:
        return math.nan
    centred = _exact(features) - _exact(features).mean(dim=0)
    values = torch.linalg.svdvals(centred).square()  # the covariance's, times n - 1
    values = values[values > _NOTHING * values[0]][_FIRST_RANK - 1 : _LAST_RANK]
    if len(values) < _LEAST_RANKS:
        return math.nan
    rank = torch.arange(_FIRST_RANK, _FIRST_RANK + len(values), dtype=torch.float64)
    x, y, weight = rank.log(), values.log(), 1 / rank
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    return float(-(weight * x * y).sum() / (weight * x * x).sum())


def lidar(features: Tensor, within: float = _WITHIN) -> float:
    """Gives the effective rank of what tells images apart, in units of what renderings change.

    By the eigenvalues of linear discriminant analysis, where the renderings of an image are a
    class. It lies between 1 and the smaller of images - 1 and width; more was better in the paper.

    Args:
        features: (n, q, D), of q renderings of each image.
        within: is added to the diagonal of the covariance within images.

    Source: LiDAR, Thilak et al., arXiv 2312.04000, section 3, equations 1 to 4.
    """
    if not _is_finite(features):
        return math.nan
    x = _exact(features)
    mean = x.mean(dim=1)  # (n, D)
    inside = (x - mean[:, None]).flatten(0, 1)  # (n * q, D)
    between = mean - mean.mean(dim=0)
    variances, directions = torch.linalg.eigh(inside.T @ inside / len(inside))
    scales = (variances.clamp(min=0) + within).sqrt()  # rounding may leave some below zero
    return effective_rank(torch.linalg.svdvals(between @ directions / scales).square())


def uniformity(features: Tensor) -> float:
    """Gives the logarithm of the mean of exp(-2 d^2) over all pairs of normalised features.

    0 where all point the same way; the lower, the more evenly they cover the sphere.

    Shape: (n, D), n at least 2.
    Source: Wang & Isola, arXiv 2005.10242, equation 5.
    """
    if not _is_finite(features):
        return math.nan
    x = F.normalize(_exact(features))
    return float(torch.pdist(x).square().mul(-_TEMPERATURE).exp().mean().log())


def dead_share(features: Tensor) -> float:
    """Gives the share of features that hardly differ between images.

    Of features that are normalised for each image, one is dead whose deviation is below 1 % of
    1 / sqrt(D), that of an isotropic normal distribution.

    Shape: (n, D).
    Source: the deviation is that of SimSiam, Chen & He, arXiv 2011.10566, section 4.1; the bound
        is mimkit's own.
    """
    if not _is_finite(features):
        return math.nan
    x = F.normalize(_exact(features))
    deviation = x.std(dim=0, correction=0)
    return float((deviation < _DEAD / math.sqrt(x.shape[1])).double().mean())


def attention_entropy(attention: Tensor) -> float:
    """Gives the mean entropy of what is looked at, 1 where all patches are looked at alike.

    Shape: (n, N), each row summing to 1, N at least 2.
    Source: Zhai et al., arXiv 2303.06296, section 3.1, there of each head; here of the heads' mean
        and divided by ln N, so that grids of any size compare.
    """
    if not _is_finite(attention):
        return math.nan
    entropy = torch.special.entr(_exact(attention)).sum(dim=1).mean()
    return float(entropy / math.log(attention.shape[1]))


def _exact(features: Tensor) -> Tensor:
    return features.detach().cpu().double()


def _is_finite(features: Tensor) -> bool:
    return bool(features.isfinite().all())
