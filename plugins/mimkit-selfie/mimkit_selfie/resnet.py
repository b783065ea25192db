"""The pieces of ResNet-50 v2 (arXiv 1603.05027), on timm's blocks, and the whole of it.

In the v2 form each residual unit begins with batch norm and ReLU, so that a stage ends in a raw
sum, which the next unit's first norm, or a closing one, makes usable.
"""

import copy

from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.resnetv2 import ResNetStage
from torch import Tensor, nn

from mimkit import Backbone


def make_stem(channels: int, width: int, imagenet: bool) -> nn.Sequential:
    """Makes the ImageNet stem (7x7 convolution and max-pool, both of stride 2) or a 3x3 one."""
    if imagenet:
        return nn.Sequential(
            nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False))


def make_stage(number: int, width: int, depth: int) -> nn.Module:
    """Makes stage 1 to 4, of ``width * 2 ** (number + 1)`` channels; 2 to 4 halve the map."""
    stage: nn.Module = ResNetStage(
        width if number == 1 else width * 2**number,
        width * 2 ** (number + 1),
        stride=1 if number == 1 else 2,
        dilation=1,
        depth=depth,
        act_layer=nn.ReLU,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
    )
    return stage


def make_norm(num_channels: int) -> nn.Module:
    """Makes a closing batch norm with ReLU."""
    norm: nn.Module = BatchNormAct2d(num_channels)
    return norm


def init_weights(module: nn.Module) -> None:
    """Draws convolutions as He et al. (arXiv 1502.01852) by their outputs; norms start at 1, 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


class ResNet(Backbone):
    """A ResNet on the full image, whose first three stages have been pre-trained on patches.

    Args:
        stem: of the patch network; it is copied.
        stages: stages 1 to 3 of the patch network; they are copied.
        closing_norm: batch norm after stage 3 in the patch network, or None. In a whole ResNet
            the first norm of stage 4 stands in its place, so that one starts as its copy.
        width: channels after the stem.
        depth: bottleneck blocks of stage 4, which is new.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: nn.Sequential,
        closing_norm: nn.Module | None,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.num_features = 32 * width
        last = make_stage(4, width, depth)
        init_weights(last)
        if closing_norm is not None:
            last.get_submodule("blocks.0.norm1").load_state_dict(closing_norm.state_dict())
        self.stem = copy.deepcopy(stem)
        self.stages = nn.Sequential(*copy.deepcopy(stages), last)
        self.norm = make_norm(self.num_features)

    def forward(self, image: Tensor) -> Tensor:
        """Averages the map that the last stage gives.

        Shape: (B, C, H, W) to (B, 32 * width).
        """
        x: Tensor = self.norm(self.stages(self.stem(image)))
        return x.mean(dim=(2, 3))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists the stem and every block, the closing norm with the last; nothing follows them.

        Source: timm's groups of its ResNetV2. The paper has no layer decay.
        """
        blocks = [
            block for stage in self.stages for block in stage.get_submodule("blocks").children()
        ]
        groups = [list(part.parameters()) for part in (self.stem, *blocks)]
        groups[-1].extend(self.norm.parameters())
        return [*groups, []]
