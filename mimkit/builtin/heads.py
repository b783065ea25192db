"""The head of methods whose encoder sees mask tokens."""

from typing import Final

from einops import rearrange
from torch import Tensor, nn

from mimkit.errors import BoundaryError
from mimkit.parts.head import Head
from mimkit.parts.records import Geometry, Mask, Tokens

_INIT_STD: Final = 0.02


class LinearHead(Head):
    """One linear layer per prediction, on the tokens at the targets.

    Args:
        geometry: gives the encoder's width and the predictions to make.
        cut_init: cut the normal start values of deviation 0.02 at one deviation, which leaves
            them one of 0.0108.

    Source: BEiT, arXiv 2106.08254, section 2.3, whose code cuts; SimMIM, arXiv 2111.09886,
        section 3.3.
    """

    ragged = True
    only_targets = True

    def __init__(self, geometry: Geometry, *, cut_init: bool = False) -> None:
        super().__init__()
        self.predictors = nn.ModuleDict(
            {
                name: nn.Linear(geometry.embed_dim, width.size)
                for name, width in geometry.outputs.items()
            }
        )
        bound = _INIT_STD if cut_init else 2.0
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=_INIT_STD, a=-bound, b=bound)
            else:
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Predicts from the tokens at the targets.

        Shape: each (B, G, M, K).
        Raises: BoundaryError if the tokens are not those at the targets.
        """
        _, groups, targets = mask.target.shape
        num_tokens = tokens.patches.shape[1]
        if num_tokens != groups * targets:
            raise BoundaryError(
                f"head 'linear' reads the tokens at the targets: {groups * targets} of them are "
                f"expected, but {num_tokens} came. Encoder.at gives them."
            )
        at_targets = rearrange(tokens.patches, "b (g m) d -> b g m d", g=groups)  # (B, G, M, D)
        return {name: predict(at_targets) for name, predict in self.predictors.items()}
