"""Weights of transformers' UPerNet and pyramid under our names."""

import re

import torch

_NAMES = (
    (r"psp_modules\.(\d)\.1\.", r"pooled.\1."),
    (r"lateral_convs\.", "laterals."),
    (r"fpn_convs\.", "smoothing."),
    (r"fpn_bottleneck\.", "fusion."),
    (r"\.conv\.", ".0."),
    (r"\.batch_norm\.", ".1."),
)
_AUXILIARY = ((r"convs\.0\.", "convolution."), *_NAMES[4:])


def shaken(module):
    """The module with no parameter or running statistic that is 0 or 1 throughout."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.2 * (noise.abs() if name.endswith("running_var") else noise))
    return module.eval()


def decode_head(module):
    return _renamed(module, _NAMES)


def auxiliary_head(module):
    return _renamed(module, _AUXILIARY)


def pyramid(backbone, ours):
    """Of a backbone with add_fpn; its tensors come in the same order, whatever they are called."""
    theirs = [tensor for name, tensor in backbone.state_dict().items() if "fpn" in name]
    return dict(zip(ours.state_dict(), theirs, strict=True))


def _renamed(module, names):
    tensors = {}
    for name, tensor in module.state_dict().items():
        new = name
        for pattern, replacement in names:
            new = re.sub(pattern, replacement, new)
        tensors[new] = tensor
    return tensors
