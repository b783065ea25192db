"""In which precision a recipe computes on a device."""

from contextlib import AbstractContextManager

import torch


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Computes in bfloat16 where `uses_bfloat16` says so."""
    enabled = uses_bfloat16(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def uses_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether the recipe's precision means bfloat16 on this device: "auto" does on CUDA only.

    On CPUs without matrix units bfloat16 is far slower than float32, so it is never a default.
    """
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
