"""Training one classifier end to end: one cell of a fine-tuning table."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchmetrics.classification import MulticlassAccuracy

from mimkit.data.sources import Source
from mimkit.evaluate.base import Subject
from mimkit.evaluate.features import evaluation_mode
from mimkit.evaluate.images import TrainingImages, WholeImages
from mimkit.parts.base import Backbone, Module
from mimkit.recipe.sections import TrainSection
from mimkit.train.loop import autocast
from mimkit.train.optim import learning_rate, make_optimizer, set_learning_rate

_EVALUATION_BATCH = 256
_STATISTICS_IMAGES = 2048


class Classifier(Module):
    """A backbone with a linear layer on top.

    Args:
        backbone: gives one vector per image.
        num_classes: how many scores it is turned into.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classify = nn.Linear(backbone.num_features, num_classes)
        nn.init.trunc_normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Gives scores.

        Shape: (B, C, H, W) to (B, classes).
        """
        return self.classify(self.backbone(image))  # type: ignore[no-any-return]

    def layer_scales(self, layer_decay: float) -> dict[nn.Parameter, float]:
        """Gives each parameter's factor of the learning rate: ``layer_decay`` per layer below.

        Source: BEiT, arXiv 2106.08254, appendix; its code counts the classifier as the top.
        """
        groups = self.backbone.layer_groups()
        return {
            parameter: layer_decay ** (len(groups) - number)
            for number, group in enumerate(groups)
            for parameter in group
        }

    if TYPE_CHECKING:
        __call__ = forward


def train_classifier(
    classifier: Classifier,
    subject: Subject,
    labels: Tensor,
    index: Tensor,
    *,
    train: TrainSection,
    seed: int,
    label_smoothing: float,
    layer_decay: float | None,
) -> None:
    """Trains on augmented images, by the schedule of pre-training: warm-up, then cosine.

    Args:
        classifier: changed in place; on the subject's device.
        subject: images, augmentation, view.
        labels: (N,) int64, of the whole training split.
        index: (n,) int64, the images that are used.
        train: budget, optimizer, learning rate.
        seed: of the order, the augmentation and dropout.
        label_smoothing: share of the target that goes to all classes alike.
        layer_decay: see `Classifier.layer_scales`; None for one rate.
    """
    device, view = subject.device, subject.view
    scales = None if layer_decay is None else classifier.layer_scales(layer_decay)
    optimizer = make_optimizer(classifier, train, scales)
    images = TrainingImages(subject.train, index, (view,), train.batch_size, subject.augment, seed)
    total = train.total_steps or 0
    classifier.train()
    stream = images.stream(total, workers=subject.workers, device=device)
    for step, (numbers, views) in enumerate(stream):
        torch.manual_seed(hash((seed, step)) % 2**63)
        lr = learning_rate(
            step, total=total, warmup=train.warmup_steps or 0, peak=train.lr, floor=train.min_lr
        )
        set_learning_rate(optimizer, lr)
        truth = labels[numbers].to(device, non_blocking=True)
        with autocast(device, train.precision):
            logits = classifier(views[view.name].contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), truth, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


@torch.no_grad()
def recompute_statistics(classifier: nn.Module, subject: Subject, index: Tensor) -> None:
    """Measures running batch statistics anew, on whole images as they are.

    A network that was pre-trained on patches alone has the statistics of patches.
    """
    chosen = index[torch.linspace(0, len(index) - 1, min(len(index), _STATISTICS_IMAGES)).long()]
    images = WholeImages(subject.train, chosen, (subject.view,), _EVALUATION_BATCH)
    stream = images.stream(len(images), workers=subject.workers, device=subject.device)
    update_bn((views[subject.view.name] for _, views in stream), classifier)


@torch.no_grad()
def accuracy(
    classifier: Classifier,
    subject: Subject,
    source: Source,
    *,
    labels: Tensor,
    index: Tensor,
    precision: str,
) -> float:
    """Returns the share of whole images that are classified right.

    Args:
        classifier: used in evaluation mode.
        subject: view, device and loader processes.
        source: the split.
        labels: (N,) int64, of that split.
        index: (n,) int64, which of its images.
        precision: as in training.
    """
    metric = MulticlassAccuracy(classifier.classify.out_features, average="micro")
    metric = metric.to(subject.device)
    images = WholeImages(source, index, (subject.view,), _EVALUATION_BATCH)
    with evaluation_mode(classifier):
        for numbers, views in images.stream(
            len(images), workers=subject.workers, device=subject.device
        ):
            with autocast(subject.device, precision):
                logits = classifier(views[subject.view.name])
            metric.update(logits, labels[numbers].to(subject.device))
    return float(metric.compute())
