"""A linear classifier on frozen features, trained to its optimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from mimkit.errors import RecipeError
from mimkit.evaluate.base import Evaluator, Result, Subject
from mimkit.evaluate.features import Pool, check_pool, extract
from mimkit.evaluate.fractions import (
    development_split,
    labels_of,
    stratified_limit,
    stratified_subset,
)
from mimkit.parts.base import Encoder
from mimkit.parts.records import Geometry

_EPSILON = 1e-6
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Args:
        mean: (D,) that is subtracted from features.
        scale: (D,) by which they are multiplied after that.
        weight: (num_classes, D).
        bias: (num_classes,).
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Gives logits: (n, D) to (n, num_classes)."""
        return F.linear((features - self.mean) * self.scale, self.weight, self.bias)

    def score(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Returns accuracy and mean cross-entropy."""
        logits, labels = self(features), labels.to(features.device)
        accuracy = MulticlassAccuracy(len(self.bias), average="micro").to(features.device)
        return float(accuracy(logits, labels)), float(F.cross_entropy(logits, labels))


def fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weight_decay: float,
    start: Probe | None = None,
) -> Probe:
    """Finds the classifier of least mean cross-entropy + weight_decay / 2 x squared weights.

    Args:
        features: (n, D) float32.
        labels: (n,) int64.
        num_classes: how many classes there are, also if ``labels`` lack some.
        weight_decay: factor of the penalty; biases pay none.
        start: where to start; the result does not depend on it, its time does.
    """
    labels = labels.to(features.device)
    mean = features.mean(0)
    scale = (features.var(0, correction=0) + _EPSILON).rsqrt()
    standard = (features - mean) * scale
    size = (num_classes, features.shape[1])
    weight = standard.new_zeros(size) if start is None else start.weight.clone()
    bias = standard.new_zeros(num_classes) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(standard, weight, bias), labels)
        loss = loss + 0.5 * weight_decay * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Probe(mean, scale, weight.detach(), bias.detach())


@dataclass(frozen=True)
class _Splits:
    """What one encoder makes of both splits."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int

    def fit(self, subset: Tensor, weight_decay: float, start: Probe | None = None) -> Probe:
        labels = self.train_labels[subset]
        features = self.train[subset.to(self.train.device)]
        return fit(features, labels, self.num_classes, weight_decay=weight_decay, start=start)


class LinearProbe(Evaluator):
    """Accuracy of multinomial logistic regression on standardised features.

    The problem is convex and solved by L-BFGS on all features at once, so there is no learning
    rate and no schedule to get wrong: only the weight decay is chosen, on the development split of
    the labelled images, and the classifier is then fitted to all of them.

    Args:
        geometry: not needed.
        pool: features are the mean of the patches, or the class token.
        weight_decays: the values to choose from; they multiply half the squared weights.
        label_fractions: shares of the labels to train on.
        seeds: how often, each with its own label subset and its own random baseline.
        num_test_images: test images to classify, all classes alike; None for all.

    Raises: RecipeError if there is no weight decay, fraction or seed.
    Source: features are standardised as in MAE's linear probe (batch norm without affine,
        arXiv 2111.06377, appendix A). Differs: no augmentation, and an exact optimum instead of
        90 epochs of LARS, so that the probe measures features and not its own optimizer.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        pool: Pool = "mean",
        weight_decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        label_fractions: tuple[float, ...] = (1.0,),
        seeds: int = 1,
        num_test_images: int | None = None,
    ) -> None:
        if not weight_decays or not label_fractions or seeds < 1:
            raise RecipeError(
                "evaluator 'linear_probe': weight_decays and label_fractions must hold at least "
                f"one value and seeds be at least 1, but they are {weight_decays}, "
                f"{label_fractions} and {seeds}."
            )
        self.pool = pool
        self.weight_decays = weight_decays
        self.label_fractions = label_fractions
        self.seeds = seeds
        self.num_test_images = num_test_images

    def check(self, subject: Subject) -> None:
        """Refuses unlabelled data, too few labels for a search, and a missing class token.

        Raises: DataError, RecipeError.
        """
        labels = labels_of(subject, "linear_probe")
        for fraction in self.label_fractions:
            subset = stratified_subset(labels.train, fraction, subject.seed)
            if len(self.weight_decays) > 1:
                development_split(labels.train, subset, subject.seed)
        check_pool(subject, self.pool)

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` of the pre-trained and of random encoders, by fraction and seed."""
        seeds = range(subject.seed, subject.seed + self.seeds)
        ours = self._encode(subject, subject.pretrainer.encoder)
        results = [r for seed in seeds for r in self._measure(subject, ours, "pretrained", seed)]
        for seed in seeds:
            random = self._encode(subject, subject.fresh(seed).encoder)
            results += self._measure(subject, random, "random", seed)
        return results

    def _encode(self, subject: Subject, encoder: Encoder) -> _Splits:
        labels = labels_of(subject, "linear_probe")
        # Some sets have many images without labels: encoding those would be for nothing.
        train = stratified_limit(labels.train, None)
        test = stratified_limit(labels.test, self.num_test_images)
        return _Splits(
            train=extract(encoder, subject, subject.train, train, self.pool),
            train_labels=labels.train[train],
            test=extract(encoder, subject, subject.test, test, self.pool),
            test_labels=labels.test[test],
            num_classes=labels.num_classes,
        )

    def _measure(self, subject: Subject, splits: _Splits, init: str, seed: int) -> list[Result]:
        results = []
        for fraction in self.label_fractions:
            subset = stratified_subset(splits.train_labels, fraction, seed)
            weight_decay = self._choose(splits, subset, seed)
            accuracy, _ = splits.fit(subset, weight_decay).score(splits.test, splits.test_labels)
            subject.report(
                f"linear_probe, {init}, {100 * fraction:g} % of the labels, seed {seed}: "
                f"{100 * accuracy:.1f} %"
            )
            results.append(
                Result(
                    evaluator="linear_probe",
                    metric="accuracy",
                    value=accuracy,
                    num_images=len(splits.test),
                    seed=seed,
                    init=init,
                    protocol={
                        "label_fraction": fraction,
                        "num_labels": len(subset),
                        "num_test_images": len(splits.test),
                        "pool": self.pool,
                        "weight_decays": ", ".join(f"{w:g}" for w in self.weight_decays),
                    },
                    chosen={"weight_decay": weight_decay},
                )
            )
        return results

    def _choose(self, splits: _Splits, subset: Tensor, seed: int) -> float:
        """Finds the weight decay that is best on the development split."""
        if len(self.weight_decays) == 1:
            return self.weight_decays[0]
        fitted, held = development_split(splits.train_labels, subset, seed)
        features, labels = splits.train[held.to(splits.train.device)], splits.train_labels[held]
        scores = {}
        probe = None
        # From strong to weak: each optimum is a good start for the next.
        for weight_decay in sorted(self.weight_decays, reverse=True):
            probe = splits.fit(fitted, weight_decay, start=probe)
            accuracy, loss = probe.score(features, labels)
            scores[weight_decay] = (accuracy, -loss)
        return max(scores, key=scores.__getitem__)
