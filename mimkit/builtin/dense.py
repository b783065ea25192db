"""What dense tasks make of a plain transformer."""

from collections.abc import Iterator

from einops import rearrange
from torch import Tensor, nn

from mimkit.errors import BoundaryError
from mimkit.parts.dense import DenseBackbone, Level, dense_blocks
from mimkit.parts.depth import set_drop_path
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Grid


class DenseTransformer(DenseBackbone):
    """Four maps of a plain transformer, all of the stride of its patches.

    >>> from mimkit.builtin.encoders import ViT
    >>> grid = Grid(2, 3, patch_size=4)
    >>> vit = ViT(Geometry(grid), embed_dim=16, depth=2, num_heads=2, final_norm="pooled")
    >>> dense = DenseTransformer(vit, None, grid)
    >>> [tuple(each.shape) for each in dense(torch.zeros(1, 3, 8, 12))]
    [(1, 16, 2, 3), (1, 16, 2, 3), (1, 16, 2, 3), (1, 16, 2, 3)]

    Args:
        vit: a transformer without a final norm, whose blocks are timm's and whose `layers`
            gives the tokens after each; this network owns it from now on.
        norm: the final norm, which `features` applies and nothing trains; None for none. Owned
            likewise.
        grid: of the images to come.
        blocks: where in the transformer its blocks are.

    Source: BEiT, arXiv 2106.08254, and CAE, arXiv 2202.03026: the blocks (`dense_blocks`), their
        outputs without a norm, and that the class token is read by the blocks alone.
    """

    def __init__(
        self, vit: Encoder, norm: nn.Module | None, grid: Grid, *, blocks: str = "blocks"
    ) -> None:
        super().__init__()
        self.vit = vit
        self.blocks = blocks
        self.norm = None if norm is None else norm.requires_grad_(False)
        self.grid = grid
        self.taken = dense_blocks(len(list(self._blocks())))
        self.last = Level(vit.embed_dim, grid.patch_size)
        self.levels = (self.last,) * len(self.taken)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Gives the tokens after four blocks, each in its place.

        Shape: (B, C, H, W) to four times (B, D, rows, cols).
        Raises: BoundaryError if the images do not have the grid's size.
        """
        self._require_size(image)
        layers = self.vit.layers(image)
        return tuple(self._map(layers[number].patches) for number in self.taken)

    def features(self, image: Tensor) -> Tensor:
        """Gives the normalised tokens after the last block, each in its place.

        Shape: (B, C, H, W) to (B, D, rows, cols).
        Raises: BoundaryError if the images do not have the grid's size.
        """
        self._require_size(image)
        patches = self.vit(image).patches
        return self._map(patches if self.norm is None else self.norm(patches))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists embedding, every block, and nothing that follows them: depth + 2 groups."""
        named = [(name, p) for name, p in self.vit.named_parameters() if p.requires_grad]
        embedding = [p for name, p in named if not name.startswith(f"{self.blocks}.")]
        return [embedding, *(list(block.parameters()) for block in self._blocks()), []]

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth of every block, rising linearly from 0 to ``rate``."""
        set_drop_path(self._blocks(), rate)

    def no_weight_decay(self) -> frozenset[str]:
        """Those of the transformer."""
        return frozenset(f"vit.{name}" for name in self.vit.no_weight_decay())

    def _blocks(self) -> Iterator[nn.Module]:
        return self.vit.get_submodule(self.blocks).children()

    def _map(self, patches: Tensor) -> Tensor:
        return rearrange(
            patches, "b (rows cols) d -> b d rows cols", rows=self.grid.rows, cols=self.grid.cols
        )

    def _require_size(self, image: Tensor) -> None:
        # An image of another shape with as many patches would be read with wrong positions.
        size = tuple(image.shape[-2:])
        if size != self.grid.image_size:
            raise BoundaryError(
                f"the dense network of {type(self.vit).__name__} was made for images of "
                f"{' x '.join(map(str, self.grid.image_size))} px, but one has "
                f"{' x '.join(map(str, size))} px. Make it with dense(grid) for their grid."
            )
