"""What dense tasks make of Selfie's patch network: the four stages of a ResNet-50 v2."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from mimkit import DenseBackbone, Level
from mimkit_selfie.resnet import ResNet


class DenseResNet(DenseBackbone):
    """The maps of all four stages, of which stages 1 to 3 have been pre-trained on patches.

    A stage of the v2 form ends in a raw sum. So each map is given under the batch norm and ReLU
    that read it in the whole ResNet: those that begin the next stage, which have been pre-trained
    for the first two maps and start as the closing norm, if there is one, for the third; and for
    the fourth the new norm that closes the network. So no parameter is added to those of
    fine-tuning, and every stage computes what it does there.

    Images may have any size; where a stride does not divide it, maps are rounded up.

    Args:
        resnet: a whole ResNet, which this network owns from now on.
        closed: whether stage 3 ended in a norm of its own in pre-training; else `features` gives
            its raw sum, as the probes read it.

    Source: Selfie, arXiv 1906.02940, section 3.4, has no dense task; the choice of maps is that of
        feature pyramids on ResNets, arXiv 1612.03144, section 3. Own: the norms.
    """

    def __init__(self, resnet: ResNet, *, closed: bool) -> None:
        super().__init__()
        self.closed = closed
        self.stem = resnet.stem
        self.stages = resnet.stages
        # The norm is taken out of the next stage and put before it, so that it is computed once.
        taken = [_replace_norm(stage) for stage in self.stages[1:]]
        self.norms = nn.ModuleList([*taken, resnet.norm])
        self.levels = _levels(self.stem, self.stages)
        self.last = self.levels[2]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Gives the maps of the four stages, each after batch norm and ReLU.

        Shape: (B, C, H, W) to (B, 4 * width, H / stride, W / stride), and so on.
        """
        x = self._stem(image)
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = norm(stage(x))
            maps.append(x)
        return tuple(maps)

    def features(self, image: Tensor) -> Tensor:
        """Gives the map of the third stage as `PatchResNet.features` does.

        Shape: (B, C, H, W) to (B, 16 * width, H / stride, W / stride).
        """
        x = self._stem(image)
        for stage, norm in zip(self.stages[:2], self.norms[:2], strict=True):
            x = norm(stage(x))
        x = self.stages[2](x)
        third: Tensor = self.norms[2](x) if self.closed else x
        return third

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists the stem and every block, as `ResNet` does; a norm counts to the block it begins.

        Nothing follows them, so that the last group is empty.
        """
        groups = [list(self.stem.parameters())]
        before: nn.Module | None = None
        for stage, norm in zip(self.stages, self.norms, strict=True):
            for number, block in enumerate(stage.get_submodule("blocks").children()):
                began = [] if number or before is None else list(before.parameters())
                groups.append([*began, *block.parameters()])
            before = norm
        groups[-1].extend(self.norms[-1].parameters())
        return [*groups, []]

    def _stem(self, image: Tensor) -> Tensor:
        x: Tensor = self.stem(image.contiguous(memory_format=torch.channels_last))
        return x


def _replace_norm(stage: nn.Module) -> nn.Module:
    """Takes the first norm out of a stage, whose first unit reads nothing else than its output."""
    first = stage.get_submodule("blocks.0")
    norm = first.get_submodule("norm1")
    first.norm1 = nn.Identity()
    return norm


def _levels(stem: nn.Module, stages: nn.Module) -> tuple[Level, ...]:
    stride, levels = _stride(stem), []
    for stage in stages.children():
        # The shortcut of the first unit shrinks the map as its branch does.
        shortcut = cast(nn.Conv2d, stage.get_submodule("blocks.0.downsample.conv"))
        stride *= _stride(shortcut)
        levels.append(Level(shortcut.out_channels, stride))
    return tuple(levels)


def _stride(module: nn.Module) -> int:
    """Multiplies the strides of all that shrinks a map."""
    steps = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.MaxPool2d)]
    sides = [step.stride[0] if isinstance(step.stride, tuple) else step.stride for step in steps]
    return math.prod(sides)
