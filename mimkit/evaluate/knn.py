"""k nearest neighbours on frozen features: no training, no hyper-parameter to choose."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.evaluate.base import Evaluator, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table
from mimkit.evaluate.features import Pool, check_pool, extract, whole
from mimkit.evaluate.fractions import Labels, labels_of, stratified_limit, tell_gaps
from mimkit.evaluate.score import Score, are_right
from mimkit.evaluate.starts import Baselines, Start, starts
from mimkit.parts.bounds import AnyCount, Count, Positive
from mimkit.parts.records import Geometry

_CHUNK_SIMILARITIES = 2**25  # of one matrix product: 128 MiB


class KNN(Evaluator):
    """Accuracy of a vote among the nearest training images by cosine similarity.

    The search is exact, in float32. Beside the pre-trained encoder stand the same encoder with
    random weights and the raw pixels: what architecture and images give for nothing.

    Args:
        geometry: not needed.
        k: how many neighbours vote; of fewer training images all do.
        temperature: a neighbour's vote weighs exp(similarity / temperature).
        pool: features are the mean of the patches, or the class token.
        num_images: training images to search among, all classes alike; None for all.
        num_test_images: test images to classify, all classes alike; None for all.
        every_steps: also measure during training at this interval; None only at its end.

    Source: weighted vote with temperature 0.07: instance discrimination, arXiv 1805.01978;
        k = 20: DINO, arXiv 2104.14294.
    """

    needs_labels = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        k: Count = 20,
        temperature: Positive = 0.07,
        pool: Pool = "mean",
        num_images: Count | None = None,
        num_test_images: Count | None = None,
        every_steps: AnyCount | None = None,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.pool = pool
        self.num_images = num_images
        self.num_test_images = num_test_images
        self.every_steps = every_steps
        self._baselines = Baselines()

    def check(self, subject: Subject) -> None:
        """Refuses unlabelled data and a missing class token.

        Raises: DataError, RecipeError.
        """
        tell_gaps(subject, "knn", labels_of(subject, "knn"))
        check_pool(subject, self.pool)

    def work(self, subject: Subject) -> Work:
        """Counts the images of both splits, for the encoder and for random weights."""
        labels = labels_of(subject, "knn")
        train = stratified_limit(labels.train, self.num_images)
        test = stratified_limit(labels.test, self.num_test_images)
        return Work(encoded=2 * (len(train) + len(test)))

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``accuracy`` of the encoder and of both baselines."""
        labels = labels_of(subject, "knn")
        train = stratified_limit(labels.train, self.num_images)
        table = Table(subject, "knn", stratified_limit(labels.test, self.num_test_images))
        return self._baselines.beside(
            starts(subject, [subject.seed]),
            lambda start: self._results(start, table, labels, train),
        )

    def _results(self, start: Start, table: Table, labels: Labels, train: Tensor) -> list[Result]:
        cell = Cell(start.init, table.subject.seed)
        depends_on = {
            "weights": start.weights,
            "options": [self.k, self.temperature, self.pool, self.num_images, self.num_test_images],
            **table.subject.rounding,
        }
        score = table.score(cell, depends_on, lambda: self._score(start, table, labels, train))
        protocol = {
            "k": self.k,
            "temperature": self.temperature,
            "pool": self.pool,
            "num_labels": len(train),
            "num_test_images": len(table.test),
        }
        return table.results(cell, score, protocol)

    @torch.no_grad()
    def _score(self, start: Start, table: Table, labels: Labels, train: Tensor) -> Score:
        subject = table.subject
        ours, judged = (
            extract(start.encoder, subject, whole(subject, source, index), self.pool)
            for source, index in ((subject.train, train), (subject.test, table.test))
        )
        votes = nearest_neighbours(
            ours,
            labels.train[train].to(subject.device),
            judged,
            num_classes=labels.num_classes,
            k=self.k,
            temperature=self.temperature,
        )
        return Score.of(are_right(votes.cpu(), labels.test[table.test]))


def nearest_neighbours(
    train: Tensor, labels: Tensor, test: Tensor, *, num_classes: int, k: int, temperature: float
) -> Tensor:
    """Gives every test vector a score per class: its neighbours' votes, the nearest one's being 1.

    A common factor of all votes changes no result, so that the nearest may set the scale: then no
    temperature is so low that all votes vanish.

    Shape: train (N, D), labels (N,) int64, test (M, D), float32; result (M, num_classes) float64.
    """
    train = F.normalize(train)
    k = min(k, len(train))
    scores = []
    for chunk in torch.split(F.normalize(test), max(1, _CHUNK_SIMILARITIES // len(train))):
        similarity, neighbour = (chunk @ train.T).topk(k)  # (m, k)
        # In double precision: votes may be so alike, or a temperature so low, that float32 fails.
        distance = (similarity[:, :1] - similarity).double()
        weight = (-distance / temperature).exp()
        votes = weight.new_zeros(len(chunk), num_classes)
        scores.append(votes.scatter_add_(1, labels[neighbour], weight))
    return torch.cat(scores)
