"""Training one classifier end to end, from an encoder's weights or from none."""

import copy
from collections.abc import Iterable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mimkit.data.device import send
from mimkit.errors import BoundaryError, RecipeError
from mimkit.evaluate.features import evaluation_mode
from mimkit.evaluate.images import TrainingImages, WholeImages
from mimkit.evaluate.mixing import Mixing
from mimkit.evaluate.score import Score, are_right
from mimkit.parts.dense import DenseBackbone
from mimkit.parts.encoder import Backbone, Encoder
from mimkit.parts.part import Module
from mimkit.parts.records import Grid
from mimkit.recipe.sections import TrainSection
from mimkit.train.optim import learning_rate, make_optimizer, set_learning_rate
from mimkit.train.precision import autocast
from mimkit.train.step import Pretrainer


class Classifier(Module):
    """A backbone and a new linear layer on top.

    Args:
        backbone: gives one vector per image.
        num_classes: width of the output.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = nn.Linear(backbone.num_features, num_classes)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Gives logits: (B, C, H, W) to (B, num_classes)."""
        scores: Tensor = self.output(self.backbone(image))
        return scores


def backbone_of(
    pretrainer: Pretrainer, network: Literal["backbone", "pooled"], grid: Grid | None = None
) -> Backbone:
    """Returns a new network with the weights of pre-training.

    Args:
        pretrainer: is left as it is.
        network: what the encoder offers, or its features under the head's own learned pooling.
        grid: of the images it will see, for "backbone" alone; None for that of pre-training.

    Raises: RecipeError if the head has no pooling, or the encoder cannot be moved to the grid.
    """
    if network == "backbone":
        return pretrainer.encoder.backbone(grid)
    pooling = pretrainer.head.pooling()
    if pooling is None:
        raise RecipeError(
            "evaluator 'finetune', network: 'pooled' needs a head with a learned pooling, but "
            f"this recipe's head ({type(pretrainer.head).__name__}) has none. Use 'backbone'."
        )
    return _Pooled(copy.deepcopy(pretrainer.encoder), pooling)


def train_classifier(
    network: Classifier,
    images: TrainingImages,
    labels: Tensor,
    train: TrainSection,
    *,
    label_smoothing: float,
    layer_decay: float | None,
    mixing: Mixing | None,
    device: torch.device,
    workers: int,
) -> None:
    """Trains all weights of ``network`` in place.

    Args:
        network: on ``device``.
        images: the labelled images.
        labels: (N,) int64, of the whole split.
        train: steps, optimizer and schedule, as in pre-training.
        label_smoothing: share of the target that is spread over all classes.
        layer_decay: factor of the learning rate from each layer to the one below; None is 1.
        mixing: what is done to every batch; None for nothing.
        device: where to compute.
        workers: loader processes, where making batches is laborious.
    """
    network.train()
    scales = None if layer_decay is None else layer_scales(network, layer_decay)
    optimizer = make_optimizer(network, train, scales)
    labels = labels.to(device)
    batches = images.stream(train.total_steps or 0, workers=workers, device=device)
    for step, (index, views) in enumerate(batches):
        # Dropout and its like follow from (seed, step), as in pre-training.
        seed = hash((images.seed, step)) % 2**63
        torch.manual_seed(seed)
        lr = learning_rate(
            step,
            total=train.total_steps or 0,
            warmup=train.warmup_steps or 0,
            peak=train.lr,
            floor=train.min_lr,
        )
        set_learning_rate(optimizer, lr)
        image, truth = views["image"], labels[send(index, device)]
        if mixing is not None:
            image, truth = mixing(image, truth, seed)
        with autocast(device, train.precision):
            logits = network(_layout(image))
        loss = F.cross_entropy(logits.float(), truth, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


@torch.no_grad()
def score_classifier(
    network: Classifier,
    images: WholeImages,
    labels: Tensor,
    *,
    precision: str,
    device: torch.device,
    workers: int,
) -> Score:
    """Measures a classifier on whole images.

    Args:
        network: used in evaluation mode.
        images: what to classify.
        labels: (N,) int64, of the whole split.
        precision: as in training.
        device: where to compute.
        workers: loader processes for sources that decode files.
    """
    correct = []
    total_loss = torch.zeros((), device=device)
    with evaluation_mode(network):
        for index, views in images.stream(len(images), workers=workers, device=device):
            truth = send(labels[index], device)
            with autocast(device, precision):
                logits = network(_layout(views["image"])).float()
            correct.append(are_right(logits, truth))
            total_loss += F.cross_entropy(logits, truth, reduction="sum")
    return Score.of(torch.cat(correct), float(total_loss) / len(images.index))


@torch.no_grad()
def recompute_batch_norm(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Replaces the running statistics of batch norm by the means over batches of ``images``.

    Statistics learned on single patches, or on parts of images, are wrong for whole ones.
    Networks without batch norm stay as they are.

    Args:
        network: left in the mode it is in.
        images: (B, C, H, W) each; equally large and mixed, since every batch counts alike.
    """
    norms = running_norms(network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
            norm.train()
        for image in images:
            network(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def running_norms(network: nn.Module) -> list[_BatchNorm]:
    """Returns the layers of batch norm that keep running statistics."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


class OnBackbone(Protocol):
    """A network whose lower part is an encoder's."""

    @property
    def backbone(self) -> Backbone | DenseBackbone:
        """The lower part."""


def layer_scales(network: OnBackbone, layer_decay: float) -> dict[nn.Parameter, float]:
    """Gives each weight's factor of the learning rate: 1 for the output, less layer by layer down.

    Raises: BoundaryError if the backbone's layers are not exactly its trainable parameters.
    Source: the code of BEiT, arXiv 2106.08254: ``layer_decay ** (L + 1 - i)``, i being 0 for the
        embedding, 1 to L for the blocks, and L + 1 for all that follows them.
    """
    layers = network.backbone.layer_groups()
    listed = sorted(id(p) for layer in layers for p in layer if p.requires_grad)
    if listed != sorted(id(p) for p in network.backbone.parameters() if p.requires_grad):
        raise BoundaryError(
            f"{type(network.backbone).__name__}.layer_groups must list every trainable parameter "
            "of the backbone exactly once."
        )
    return {
        parameter: layer_decay**below
        for below, layer in enumerate(reversed(layers))
        for parameter in layer
    }


class _Pooled(Backbone):
    def __init__(self, encoder: Encoder, pooling: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.num_features = encoder.embed_dim

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = self.pooling(self.encoder.features(image))
        return pooled

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(self.encoder.parameters()), list(self.pooling.parameters()), []]


def _layout(image: Tensor) -> Tensor:
    """Channels-last is what convolutions run fastest in."""
    return image.contiguous(memory_format=torch.channels_last)
