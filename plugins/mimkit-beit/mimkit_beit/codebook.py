"""A first codebook: the centres that k-means finds among vectors."""

from typing import Final

import torch
from torch import Tensor

_NUM_ROUNDS: Final = 10
_CHUNK_VECTORS: Final = 4096


def choose_codes(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Chooses codes by k-means; one that nothing is nearest to moves to the worst-served vector.

    Args:
        vectors: (V, D) float32.
        count: K, how many codes.
        generator: of the CPU; draws the vectors to start from.

    Shape: (K, D).
    """
    start = torch.randint(len(vectors), (count,), generator=generator)
    if len(vectors) >= count:
        start = torch.randperm(len(vectors), generator=generator)[:count]
    codes = vectors[start.to(vectors.device)]
    for _ in range(_NUM_ROUNDS):
        ids, distance = nearest(vectors, codes)
        size = torch.bincount(ids, minlength=count)
        mean = torch.zeros_like(codes).index_add_(0, ids, vectors) / size.clamp(min=1)[:, None]
        empty = (size == 0).nonzero().flatten()[: len(vectors)]
        mean[empty] = vectors[distance.topk(len(empty)).indices]
        codes = mean
    return codes


def nearest(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the nearest code of each vector and its squared distance.

    Shape: vectors (V, D), codes (K, D); ids (V,) int64, distances (V,).
    """
    ids, distances = [], []
    for chunk in torch.split(vectors, _CHUNK_VECTORS):
        squares = codes.square().sum(1) - 2 * chunk @ codes.T
        least = squares.min(dim=1)
        ids.append(least.indices)
        distances.append((least.values + chunk.square().sum(1)).clamp(min=0))
    return torch.cat(ids), torch.cat(distances)
