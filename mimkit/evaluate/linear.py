"""A linear classifier on frozen features, trained to its optimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from mimkit.errors import RecipeError
from mimkit.evaluate.base import Evaluator, Result, Subject
from mimkit.evaluate.features import Pool, extract
from mimkit.evaluate.fractions import (
    Labels,
    development_split,
    labels_of,
    stratified_limit,
    stratified_subset,
)
from mimkit.parts.records import Geometry

_MAX_ITERATIONS = 200


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

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` of the pre-trained and of random encoders, by fraction and seed."""
        labels = labels_of(subject, "linear_probe")
        seeds = range(subject.seed, subject.seed + self.seeds)
        ours = self._features(subject, labels, None)
        results = [self._results(subject, labels, ours, "pretrained", seed) for seed in seeds]
        for seed in seeds:
            random = self._features(subject, labels, seed)
            results.append(self._results(subject, labels, random, "random", seed))
        return [result for group in results for result in group]

    def _features(
        self, subject: Subject, labels: Labels, seed: int | None
    ) -> tuple[Tensor, Tensor]:
        """Encodes both splits, with the pre-trained encoder or a random one."""
        encoder = (subject.pretrainer if seed is None else subject.fresh(seed)).encoder
        everything = torch.arange(len(labels.train))
        test_index = stratified_limit(labels.test, self.num_test_images)
        return (
            extract(encoder, subject, subject.train, everything, self.pool),
            extract(encoder, subject, subject.test, test_index, self.pool),
        )

    def _results(
        self,
        subject: Subject,
        labels: Labels,
        features: tuple[Tensor, Tensor],
        init: str,
        seed: int,
    ) -> list[Result]:
        train, test = features
        test_index = stratified_limit(labels.test, self.num_test_images)
        results = []
        for fraction in self.label_fractions:
            subset = stratified_subset(labels.train, fraction, seed)
            weight_decay = self._choose(train, labels, subset, seed)
            probe = fit(
                train[subset], labels.train[subset], labels.num_classes, weight_decay=weight_decay
            )
            value, _ = probe.score(test, labels.test[test_index])
            subject.report(
                f"linear_probe, {init}, {100 * fraction:g} % of the labels, seed {seed}: "
                f"{100 * value:.1f} %"
            )
            protocol = {
                "label_fraction": fraction,
                "num_labels": len(subset),
                "pool": self.pool,
            }
            chosen = {"weight_decay": weight_decay}
            results.append(
                Result(
                    "linear_probe",
                    "accuracy",
                    value,
                    len(test_index),
                    seed,
                    init,
                    protocol,
                    chosen,
                )
            )
        return results

    def _choose(self, train: Tensor, labels: Labels, subset: Tensor, seed: int) -> float:
        """Finds the weight decay that is best on the development split."""
        if len(self.weight_decays) == 1:
            return self.weight_decays[0]
        fitted, development = development_split(labels.train, subset, seed)
        scores = {}
        probe = None
        # From strong to weak: each optimum is a good start for the next.
        for weight_decay in sorted(self.weight_decays, reverse=True):
            probe = fit(
                train[fitted],
                labels.train[fitted],
                labels.num_classes,
                weight_decay=weight_decay,
                start=probe,
            )
            accuracy, loss = probe.score(train[development], labels.train[development])
            scores[weight_decay] = (accuracy, -loss)
        return max(scores, key=scores.__getitem__)


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Args:
        mean: (D,) of the features it was fitted to.
        std: (D,) likewise; 1 where a feature never varies.
        weight: (classes, D).
        bias: (classes,).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def score(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Returns accuracy and mean cross-entropy.

        Shape: features (n, D), labels (n,) int64 on any device.
        """
        labels = labels.to(features.device)
        logits = F.linear((features - self.mean) / self.std, self.weight, self.bias)
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
    """Minimises cross-entropy + ``weight_decay`` / 2 times the squared weights, by L-BFGS.

    Args:
        features: (n, D) float32.
        labels: (n,) int64 on any device.
        num_classes: how many classes the labels number.
        weight_decay: factor of the penalty; the bias is free of it.
        start: a solution to begin from, of the same features.
    """
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    inputs, labels = (features - mean) / std, labels.to(features.device)
    if start is None:
        weight = torch.zeros(num_classes, features.shape[1], device=features.device)
        bias = torch.zeros(num_classes, device=features.device)
    else:
        weight, bias = start.weight.clone(), start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def objective() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), labels)
        loss = loss + weight_decay / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        return float(loss)

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return Probe(mean, std, weight.detach(), bias.detach())
