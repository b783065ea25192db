"""Convolution, norm and ReLU, as the heads of dense tasks are built of them."""

from typing import Final, Literal

from torch import Tensor, nn

from mimkit.errors import RecipeError

Norm = Literal["batch", "group"]
"""An option of heads: statistics of each channel over the batch, or of groups within an image."""

FEWEST_VALUES: Final = 3
"""Normalised, two values are always 1 and -1, whatever they were, and no gradient passes."""

_MOST_GROUPS: Final = 32
_GROUP_WIDTH: Final = 16


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that refuses what it cannot take statistics of.

    Of one value per channel nothing is left when it is normalised, of two only a sign.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises each channel, in training by the statistics of the batch.

        Shape: (B, C, H, W).
        Raises: RecipeError in training if B * H * W is less than 3.
        """
        count = input.shape[0] * input.shape[2] * input.shape[3]
        if self.training and count < FEWEST_VALUES:
            raise RecipeError(
                f"norm = 'batch': needs at least {FEWEST_VALUES} values per channel to normalise, "
                f"but {input.shape[0]} images with maps of {input.shape[2]} x {input.shape[3]} "
                f"have {count}. Train on more images at once, or use norm = 'group'."
            )
        normalised: Tensor = super().forward(input)
        return normalised


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Makes a norm of maps.

    >>> make_norm("group", 512)
    GroupNorm(32, 512, eps=1e-05, affine=True)
    >>> make_norm("group", 48)
    GroupNorm(3, 48, eps=1e-05, affine=True)

    Args:
        norm: "batch", or "group": up to 32 groups of at least 16 channels, so that a map of one
            cell can be normalised too.
        channels: of the maps.

    Raises: RecipeError if there are too few channels for "group".
    Source: group norm, arXiv 1803.08494, section 4.1: 32 groups, or 16 channels each.
    """
    if norm == "batch":
        return BatchNorm(channels)
    if channels < FEWEST_VALUES:
        raise RecipeError(
            f"norm = 'group': needs at least {FEWEST_VALUES} channels, but there are {channels}."
        )
    most = min(_MOST_GROUPS, max(channels // _GROUP_WIDTH, 1))
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def require_images(norm: Norm, batch_size: int, where: str) -> None:
    """Refuses a batch whose maps, pooled to one cell each, batch norm cannot normalise.

    >>> require_images("group", 1, "evaluator 'x'")

    Args:
        norm: of the head.
        batch_size: images of a training step on one device.
        where: what begins the message, such as ``"evaluator 'segmentation'"``.

    Raises: RecipeError.
    """
    if norm == "batch" and batch_size < FEWEST_VALUES:
        raise RecipeError(
            f"{where}, batch_size: must be at least {FEWEST_VALUES} with norm = 'batch', but is "
            f"{batch_size}. Use norm = 'group', or more images a step; papers take 16."
        )


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, norm: Norm
) -> nn.Sequential:
    """Makes a convolution that keeps the map's size, its norm, and ReLU.

    Source: start values as in the code of the papers' heads: He et al. (arXiv 1502.01852) by the
        outputs.
    """
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, make_norm(norm, out_channels), nn.ReLU())
