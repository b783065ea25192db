"""Counting what a method needs, for a machine that is not this one: FLOPs, weights and memory.

Nothing here depends on how fast this machine is, but for the rate at which images are loaded.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from rich.console import Console
from torch import Tensor

from mimkit.data.device import on_all
from mimkit.errors import RecipeError
from mimkit.evaluate.features import evaluation_mode
from mimkit.folder import RunFolder
from mimkit.parts.flops import count_flops
from mimkit.parts.records import Batch
from mimkit.parts.target import Preparation
from mimkit.pipeline.assemble import assemble, rehearse
from mimkit.pipeline.current import Run
from mimkit.pipeline.ledger import count_parameters
from mimkit.recipe.schema import Recipe
from mimkit.study.alive import Alive, alive
from mimkit.study.filling import Repeated
from mimkit.study.measuring import disk_bytes, evaluation_seconds
from mimkit.study.scaling import Footprint, Weights
from mimkit.train.distributed import join
from mimkit.train.glance import fewest
from mimkit.train.loop import Loop
from mimkit.train.sharding import refuse_unshardable, units_of

_LOADED: Final = 16
"""Images that are loaded to time it."""


@dataclass(frozen=True)
class Counted:
    """What was counted of one method.

    Args:
        footprint: of a step.
        parameters: as of a `Trial`.
        prepared: what targets need first.
        encode_seconds: of one image, at the speed that was asked for.
        train_seconds: of one image of fine-tuning, likewise.
        evaluate_seconds: of the evaluations, by evaluator.
        disk_bytes: of a run folder.
        has_cls: whether the encoder has a class token.
        fingerprint: of the training images.
        num_images: how many those are.
    """

    footprint: Footprint
    parameters: Mapping[str, int]
    prepared: tuple[Preparation, ...]
    encode_seconds: float
    train_seconds: float
    evaluate_seconds: Mapping[str, float]
    disk_bytes: int
    has_cls: bool
    fingerprint: str
    num_images: int


def count(recipe: Recipe, console: Console, *, flops_per_second: float) -> Counted:
    """Counts a recipe on the CPU, with one image and with two; nothing is trained or prepared.

    Args:
        recipe: what would be run.
        console: is told what the recipe has to tell.
        flops_per_second: of the GPU that evaluations would run on.

    Raises: MimkitError for everything that a run of it would refuse at once.
    """
    half = recipe.train.precision != "float32"
    train = recipe.train.model_copy(update={"precision": "bfloat16" if half else "float32"})
    recipe = recipe.model_copy(update={"train": train})
    with join("cpu") as world, TemporaryDirectory() as scratch, RunFolder(Path(scratch)) as folder:
        with Repeated():  # type: ignore[no-untyped-call]
            current = assemble(recipe, folder, world, console, announce=False)
        rehearse(current)
        loading = min(_LOADED, len(current.train))
        start = time.process_time()  # whatever else this machine is at work on
        batch = current.batches(batch_size=loading)[0]
        on_device = current.train.pixels is not None
        load_seconds = 0.0 if on_device else (time.process_time() - start) / loading
        footprint = _footprint(current, batch, load_seconds, half=half)
        encoding, has_cls = _encode(current, batch.image[:1])
        encode_seconds = encoding / flops_per_second
        train_seconds = _train(current, batch.image) / flops_per_second
        return Counted(
            footprint=footprint,
            parameters=(parameters := count_parameters(current.pretrainer)),
            prepared=tuple(current.prepared.values()),
            encode_seconds=encode_seconds,
            train_seconds=train_seconds,
            evaluate_seconds=evaluation_seconds(current, encode_seconds, train_seconds),
            disk_bytes=disk_bytes(parameters),
            has_cls=has_cls,
            fingerprint=current.train.fingerprint,
            num_images=len(current.train),
        )


def _footprint(current: Run, batch: Batch, load_seconds: float, *, half: bool) -> Footprint:
    module, train = current.pretrainer, current.recipe.train
    few = fewest(module, batch.index.shape[0])
    loop = current.loop()
    loop.forward = module
    loop.cut(1)
    module.train()
    flops = count_flops(lambda: loop.gradients(0, batch.rows(0, few)))
    one, two = (_step(loop, batch.rows(0, 2 * n)) for n in (few, 2 * few))
    image_bytes = max(0, two.peak - one.peak) // few
    units = _units(module)
    parameters = list(module.parameters())
    inside = [parameter for unit in units for parameter in unit]
    ids = {id(parameter) for parameter in inside}
    return Footprint(
        units=tuple(map(_weights, units)),
        rest=_weights([each for each in parameters if id(each) not in ids]),
        constants=sum(buffer.nbytes for buffer in module.buffers()),
        buffers=_sent_buffers(module),
        step_bytes=max(0, one.peak - few * image_bytes),
        image_bytes=image_bytes,
        input_bytes=sum(each.nbytes for each in _tensors(batch)) // len(batch.index),
        flops_per_image=flops / few,
        operators=one.operators // 2,
        load_seconds=load_seconds,
        moments=2 if train.optimizer == "adamw" else 1,
        half=half,
        unspreadable=_refusal(current),
    )


def _units(module: torch.nn.Module) -> list[list[torch.nn.Parameter]]:
    """The weights of each unit, without those that a unit within it has."""
    taken: set[int] = set()
    units = []
    for unit in units_of(module):  # inner ones first
        own = [each for each in unit.parameters() if id(each) not in taken]
        taken |= {id(each) for each in own}
        units.append(own)
    return units


def _weights(parameters: list[torch.nn.Parameter]) -> Weights:
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    return Weights(sum(each.numel() for each in parameters), trained)


def _sent_buffers(module: torch.nn.Module) -> int:
    """Bytes that DDP hands on before each step; constants outside the state dict stay at home."""
    kept = module.state_dict(keep_vars=True)
    return sum(buffer.nbytes for name, buffer in module.named_buffers() if name in kept)


def _refusal(current: Run) -> str:
    try:
        refuse_unshardable(current.pretrainer, current.recipe.train)
    except RecipeError as error:
        return str(error)
    return ""


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    on_all(batch, note)
    return found


def _step(loop: Loop, batch: Batch) -> Alive:
    """Counts what a step has at once beside its weights, of a batch in two pieces.

    With the second piece gradients are there already, as they are for all but the first of many.
    """
    module = loop.pretrainer
    before = [*module.parameters(), *module.buffers(), *_tensors(batch)]
    loop.cut(2)
    loop.optimizer.zero_grad()
    found = alive(lambda: loop.gradients(0, batch), before)
    loop.optimizer.zero_grad()
    return found


@torch.no_grad()
def _encode(current: Run, image: Tensor) -> tuple[int, bool]:
    """FLOPs of the frozen encoder; also whether its tokens begin with a class token."""
    encoder, prefix = current.pretrainer.encoder, 0

    def encode() -> None:
        nonlocal prefix
        prefix = encoder.layers(image)[-1].prefix.shape[1]

    with evaluation_mode(encoder):
        return count_flops(encode), prefix > 0


def _train(current: Run, image: Tensor) -> float:
    """FLOPs of an image in the network that fine-tuning trains."""
    with torch.random.fork_rng(devices=[]), Repeated():  # type: ignore[no-untyped-call]
        backbone = current.pretrainer.encoder.backbone().train()
    few = image[: fewest(backbone, len(image))]

    def passes() -> None:
        torch.autograd.backward(backbone(few).square().mean())

    return count_flops(passes) / len(few)
