"""Do two renderings of an image have the same neighbours? Frozen features without any label."""

from typing import Annotated, Final

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from mimkit.data.counter import uniform
from mimkit.data.pixels.augment import Augment
from mimkit.errors import DataError
from mimkit.evaluate.base import Evaluator, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table
from mimkit.evaluate.features import FEATURE_BATCH, Pool, check_pool, extract
from mimkit.evaluate.image_scores import pack
from mimkit.evaluate.images import Renderings, evenly_spaced
from mimkit.evaluate.score import Score
from mimkit.evaluate.starts import Baselines, Start, starts
from mimkit.parts.bounds import AnyCount, Count
from mimkit.parts.records import Geometry

VARIATION: Final = Augment(crop="resized", crop_scale=(0.2, 1.0), flip=True)
"""How the renderings vary: alike for all recipes, else a mild augmentation would look good."""
_NAME: Final = "knn_consistency"
_TIES: Final = 1004  # a stream of the counter generator, beside those of evaluate.fractions
_CHUNK_SIMILARITIES: Final = 2**23  # of one matrix product: 32 MiB


class KNNConsistency(Evaluator):
    """Share of the nearest neighbours that two renderings of a held-out image have in common.

    Every image is rendered twice, by a random resized crop of 20 to 100 % of its area and a flip.
    The k nearest of one rendering by cosine similarity are looked for among the other images' other
    renderings, and the reverse; the value is the mean share of images that are found both times.
    Chance gives k / (images - 1), and so do features that are the same for all images.

    No label is read. Images and renderings follow from the run's seed alone, not from the recipe's
    augmentation, so that methods compare. It is no accuracy: what a crop leaves alone, such as the
    mean colour, is consistent too, and a few images that are near to all raise the value. Read it
    beside the same encoder with random weights and the raw pixels. A small network trained with
    the labels of CIFAR-10 rises from 11.5 to 15.1 % while its k-NN accuracy rises from 32 to 70 %;
    where random features see little but colour, learning more may lower it.

    Args:
        geometry: not needed.
        k: how many neighbours; fewer where there are less than 2 k + 1 images.
        pool: features are the mean of the patches, or the class token.
        num_images: so many images, evenly spaced over the test split.
        every_steps: also measure during training at this interval; None only at its end.

    Source: mutual nearest neighbours with k = 10: Huh et al., The Platonic Representation
        Hypothesis, arXiv 2405.07987, there of two models on one image, here of one model on two
        renderings. Crop and flip are those of MAE's code in pre-training (arXiv 2111.06377).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        k: Count = 10,
        pool: Pool = "mean",
        num_images: Annotated[int, Interval(ge=3, le=1_000_000_000)] = 2000,
        every_steps: AnyCount | None = None,
    ) -> None:
        self.k = k
        self.pool = pool
        self.num_images = num_images
        self.every_steps = every_steps
        self._baselines = Baselines()

    def check(self, subject: Subject) -> None:
        """Refuses too few images and a missing class token.

        Raises: DataError, RecipeError.
        """
        count = len(evenly_spaced(subject.test, self.num_images))
        if count < 3:
            raise DataError(
                f"evaluator '{_NAME}' needs at least three held-out images, but '"
                f"{subject.test.name}' has {count}. Give more images, or remove this evaluator "
                "from the recipe."
            )
        check_pool(subject, self.pool)

    def work(self, subject: Subject) -> Work:
        """Counts two renderings of each image, for the encoder and for random weights."""
        return Work(encoded=2 * 2 * len(evenly_spaced(subject.test, self.num_images)))

    def run(self, subject: Subject) -> list[Result]:
        """Gives ``consistency`` of the encoder and of both baselines."""
        index = evenly_spaced(subject.test, self.num_images)
        table = Table(subject, _NAME, index, metrics=("consistency",))
        return self._baselines.beside(
            starts(subject, [subject.seed]), lambda start: self._results(start, table)
        )

    def _results(self, start: Start, table: Table) -> list[Result]:
        cell, count = Cell(start.init, table.subject.seed), len(table.test)
        k = min(self.k, (count - 1) // 2)
        depends_on = {
            "weights": start.weights,
            "options": [k, self.pool, self.num_images],
            **table.subject.rounding,
        }
        score = table.score(
            cell,
            depends_on,
            lambda: self._score(start, table, k),
            note=f"chance {k / (count - 1):.3g}",
        )
        return table.results(cell, score, {"k": k, "pool": self.pool, "num_images": count})

    def _score(self, start: Start, table: Table, k: int) -> Score:
        subject, index = table.subject, table.test
        views, seed = (subject.view,), subject.seed
        one, other = (
            extract(
                start.encoder,
                subject,
                Renderings(subject.test, index, views, FEATURE_BATCH, VARIATION, seed, number),
                self.pool,
            )
            for number in (0, 1)
        )
        shared = shared_neighbours(one, other, k, seed)
        value = int(shared.sum()) / (len(index) * k)
        return Score({"consistency": value}, image_scores=pack(shared, k))


def shared_neighbours(one: Tensor, other: Tensor, k: int, seed: int) -> Tensor:
    """Counts for each image the k nearest neighbours that its two renderings have in common.

    Args:
        one: (n, D) features of one rendering of each image; the other images' other renderings are
            its neighbours.
        other: (n, D) features of the other rendering.
        k: how many neighbours, less than n.
        seed: decides between neighbours that are equally near, for each image and rendering anew:
            else images that all look alike would all agree.

    Shape: (n,) int64, from 0 to k.
    """
    count = len(one)
    one, other = F.normalize(one), F.normalize(other)
    orders = [_order(count, seed, rendering).to(one.device) for rendering in (0, 1)]
    shared = []
    images = torch.arange(count, device=one.device)
    for rows in torch.split(images, max(1, _CHUNK_SIMILARITIES // count)):
        first = _neighbours(one, other, rows, k, orders[0])
        second = _neighbours(other, one, rows, k, orders[1])
        shared.append((first[:, :, None] == second[:, None, :]).sum((1, 2)))
    return torch.cat(shared)


def _neighbours(query: Tensor, among: Tensor, rows: Tensor, k: int, order: Tensor) -> Tensor:
    """Gives the images nearest to those at ``rows``, themselves left out, (len(rows), k).

    Their place in an order decides between equally near ones; it is another one for each row.
    """
    places = torch.arange(len(order), device=order.device) + rows[:, None]
    image = order[places % len(order)]  # (len(rows), n)
    similarity = (query[rows] @ among.T).gather(1, image)
    similarity.masked_fill_(image == rows[:, None], -torch.inf)
    return image.gather(1, similarity.topk(k).indices)


def _order(count: int, seed: int, rendering: int) -> Tensor:
    keys = uniform(seed, _TIES, np.arange(count) + rendering * 2**40, 1)[:, 0]
    return torch.from_numpy(np.argsort(keys, kind="stable"))
