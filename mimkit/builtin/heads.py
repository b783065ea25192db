"""The head of methods whose encoder sees mask tokens."""

from torch import Tensor, nn

from mimkit.errors import BoundaryError
from mimkit.parts.base import Head
from mimkit.parts.patches import take
from mimkit.parts.records import Geometry, Mask, Tokens


class LinearHead(Head):
    """One linear layer per prediction, on the tokens at the targets.

    Args:
        geometry: gives the encoder's width and the predictions to make.

    Source: BEiT, arXiv 2106.08254, section 2.3; SimMIM, arXiv 2111.09886, section 3.3.
    """

    ragged = True
    needs_hidden = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.predictors = nn.ModuleDict(
            {
                name: nn.Linear(geometry.embed_dim, width.size)
                for name, width in geometry.outputs.items()
            }
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            else:
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Predicts from the tokens at the targets.

        Shape: each (B, G, M, K).
        Raises: BoundaryError if not all of the grid has entered the encoder.
        """
        num_tokens, num_patches = tokens.patches.shape[1], mask.grid.num_patches
        if num_tokens != num_patches:
            raise BoundaryError(
                f"head 'linear' reads the tokens at the targets: all {num_patches} patches must "
                f"enter the encoder, but {num_tokens} did. Use a masker that replaces patches by "
                "mask tokens, for instance masker.mode = 'replace' of masker 'random'."
            )
        at_targets = take(tokens.patches, mask.target)  # (B, G, M, D)
        return {name: predict(at_targets) for name, predict in self.predictors.items()}
