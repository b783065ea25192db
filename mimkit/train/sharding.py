"""A model spread over processes (`train.parallel = "fsdp"`): torch's `fully_shard`, thinly.

Weights, gradients and optimizer state are `DTensor`; buffers stay whole in every process.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mimkit.errors import RecipeError
from mimkit.parts.part import Module
from mimkit.recipe.schema import TrainSection
from mimkit.train.distributed import World
from mimkit.train.precision import uses_bfloat16


def spread(module: Module, world: World, precision: str) -> None:
    """Spreads the weights of a module over all processes, in place.

    Each of its units (`Module.units`) is gathered while it runs and let go after it; the rest is
    one more unit. Where the recipe computes in bfloat16, units travel in it, which halves what is
    sent; their gradients are summed in float32, as is everything of the rest.

    Args:
        module: on the CPU, alike in all processes; is moved to the device of each.
        world: of more than one process.
        precision: the recipe's.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    half = torch.bfloat16 if uses_bfloat16(world.device, precision) else None
    # Blocks may hand on float32 among weights in bfloat16: autocast decides, as in one process.
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    for unit in units_of(module):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=rest)


def is_spread(module: nn.Module) -> bool:
    """Whether a module has been spread over processes."""
    return isinstance(module, FSDPModule)


def units_of(module: nn.Module) -> list[nn.Module]:
    """Lists the units of a module and of all parts within it, inner ones first."""
    found: dict[nn.Module, None] = {}
    for each in module.modules():
        if isinstance(each, Module):
            found |= dict.fromkeys(each.units())
    return [unit for unit in reversed(found) if next(unit.parameters(), None) is not None]


def refuse_unshardable(module: nn.Module, train: TrainSection) -> None:
    """Refuses what cannot be trained in shares.

    Raises: RecipeError that says why, and what to do.
    """
    said = '[train] parallel: must be "ddp"'
    for name, each in module.named_modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            raise RecipeError(
                f'{said} for a network with batch norm ({name}), but is "fsdp". Its running '
                "statistics are no weights: each process would keep those of its own images, and "
                "no two would have the same encoder. Set train.parallel=ddp, or take an encoder "
                "with layer norm, such as a transformer."
            )
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise RecipeError(
                f'{said} for a weight without axes ({name}), but is "fsdp", which cannot cut it. '
                "Set train.parallel=ddp, or give that weight one axis of one element."
            )
    if train.optimizer != "adamw":
        raise RecipeError(
            f'{said} with optimizer = "{train.optimizer}", but is "fsdp", for which torch has no '
            "fused SGD: only a fused optimizer skips a step that is not finite without waiting "
            "for the GPU. Set train.parallel=ddp, or train.optimizer=adamw."
        )


def compile_units(module: nn.Module) -> None:
    """Lets every unit compute compiled; what gathers its weights stays outside."""
    for unit in units_of(module):
        unit.forward = torch.compile(unit.forward)


def run_units_eagerly(module: nn.Module) -> None:
    """Undoes `compile_units`."""
    for unit in units_of(module):
        unit.__dict__.pop("forward", None)


def own(tensor: Tensor) -> Tensor:
    """Gives this process's share of a tensor, in the same memory; all of it where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Gathers a tensor from all processes, which must ask for it at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(model: Tensor | None, value: Tensor) -> Tensor:
    """Takes this process's share of a whole tensor, as ``model`` is spread; asks no other."""
    if not isinstance(model, DTensor) or model.shape != value.shape:
        return value
    return distribute_tensor(value, model.device_mesh, model.placements, src_data_rank=None)


def gathered(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Gives the state dict of a spread module, one whole tensor after the other.

    All processes must go through it at once.
    """
    for name, value in module.state_dict().items():
        yield name, whole(value)
