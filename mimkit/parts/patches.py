"""Moving between images, grids of patches and selections of them."""

import torch
from einops import rearrange
from torch import Tensor

from mimkit.parts.records import Grid, Mask


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Cuts images into patches, row by row.

    >>> patchify(torch.zeros(1, 3, 8, 12), 4).shape
    torch.Size([1, 6, 3, 4, 4])

    Shape: (B, C, H, W) to (B, N, C, P, P) with P = ``patch_size`` pixels.
    """
    return rearrange(
        image, "b c (rows p) (cols q) -> b (rows cols) c p q", p=patch_size, q=patch_size
    )


def unpatchify(patches: Tensor, grid: Grid) -> Tensor:
    """Puts patches together again.

    >>> image = torch.rand(1, 3, 8, 12)
    >>> torch.equal(unpatchify(patchify(image, 4), Grid(2, 3, 4)), image)
    True

    Shape: (B, N, C, P, P) to (B, C, H, W).
    """
    return rearrange(
        patches, "b (rows cols) c p q -> b c (rows p) (cols q)", rows=grid.rows, cols=grid.cols
    )


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Picks rows by position, without the data-dependent shapes of boolean indexing.

    >>> tokens = torch.tensor([[[10.0], [11.0], [12.0]]])
    >>> take(tokens, torch.tensor([[2, 0]])).flatten().tolist()
    [12.0, 10.0]

    Shape: tokens (B, N, ...), index (B, ...) int64; result is index's shape followed by the
    trailing axes of ``tokens``.
    """
    flat = index.flatten(1)
    expanded = flat.reshape(*flat.shape, *(1,) * (tokens.ndim - 2))
    picked = tokens.gather(1, expanded.expand(*flat.shape, *tokens.shape[2:]))
    return picked.reshape(*index.shape, *tokens.shape[2:])


def scatter(tokens: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Returns ``tokens`` with the rows at ``index`` replaced by ``values``; the inverse of `take`.

    >>> tokens, index = torch.zeros(1, 3, 1), torch.tensor([[2, 0]])
    >>> scatter(tokens, index, torch.tensor([[[5.0], [6.0]]])).flatten().tolist()
    [6.0, 0.0, 5.0]

    Shape: tokens (B, N, ...), index (B, ...) int64, values as `take` gives them. Where an index
    occurs twice, either value may stay.
    """
    flat = index.flatten(1)
    expanded = flat.reshape(*flat.shape, *(1,) * (tokens.ndim - 2))
    return tokens.scatter(
        1,
        expanded.expand(*flat.shape, *tokens.shape[2:]),
        values.reshape(*flat.shape, *tokens.shape[2:]).to(tokens.dtype),
    )


def paste(image: Tensor, patches: Tensor, mask: Mask) -> Tensor:
    """Returns the images with other pixels at the valid target positions, for pictures.

    Where groups overlap, any of their patches may stay.

    >>> mask = Mask.replace(torch.tensor([[False, True, False, False]]), Grid(2, 2, 1))
    >>> paste(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 1, 1, 1), mask)[0, 0].tolist()
    [[0.0, 1.0], [0.0, 0.0]]

    Shape: image (B, C, H, W), patches (B, G, M, C, P, P).
    """
    cells = patchify(image, mask.grid.patch_size)  # (B, N, C, P, P)
    # Padding points at position 0, which may be a true target: it goes to a spare last row.
    spare = torch.cat([cells, torch.zeros_like(cells[:, :1])], dim=1)
    index = torch.where(mask.valid, mask.target, cells.shape[1])
    return unpatchify(scatter(spare, index, patches)[:, :-1], mask.grid)
