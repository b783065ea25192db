"""Is the encoder well, as far as features tell without any label?"""

from typing import Annotated, Final

import torch
from annotated_types import Interval
from torch import Tensor

from mimkit.errors import DataError
from mimkit.evaluate.base import Evaluator, Result, Subject, Work
from mimkit.evaluate.cells import Cell, Table, digest
from mimkit.evaluate.consistency import VARIATION
from mimkit.evaluate.features import (
    FEATURE_BATCH,
    Pool,
    check_pool,
    evaluation_mode,
    extract,
    rendered,
    whole,
)
from mimkit.evaluate.images import Renderings, evenly_spaced
from mimkit.evaluate.score import Score
from mimkit.evaluate.spectra import (
    attention_entropy,
    dead_share,
    decay,
    lidar,
    rankme,
    uniformity,
)
from mimkit.parts.bounds import AnyCount
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Geometry

_NAME: Final = "health"
_METRICS: Final = ("rankme", "lidar", "alpha", "uniformity", "dead_share", "attention_entropy")
_SEED: Final = 0
_LEAST: Final = 2

Few = Annotated[int, Interval(ge=_LEAST, le=10_000)]
"""All pairs of so many are compared at once."""


class Health(Evaluator):
    """Six numbers on the frozen features of held-out images, for which nobody needs labels.

    They tell of a collapse, and whether features still change; they are no accuracies and methods
    are not ranked by them: how well they follow labelled results is measured in docs/results.md.
    Images and renderings are the same at every call and for every seed.

    ``rankme``: effective number of directions. ``lidar``: the same of what tells images apart,
    renderings of them being alike. ``alpha``: how fast the spectrum falls. ``uniformity``: how
    evenly directions cover the sphere, 0 where all are the same. ``dead_share``: share of
    features that hardly vary. ``attention_entropy``: 1 where the last block looks at all patches
    alike; only of encoders that tell what they look at (`Encoder.attention`).

    Args:
        geometry: not needed.
        pool: features are the mean of the patches, or the class token.
        num_images: so many images, evenly spaced over the test split; more than features are wide,
            else the rank is bounded by them.
        lidar_images: images that are rendered several times.
        lidar_renderings: of each; the paper has 50, and 10 in an ablation.
        every_steps: also measure during training at this interval; None only at its end.

    Source: RankMe, arXiv 2210.02885; LiDAR, arXiv 2312.04000; alpha-ReQ, NeurIPS 2022; uniformity,
        arXiv 2005.10242; deviations of features, arXiv 2011.10566; attention entropy,
        arXiv 2303.06296. What each does otherwise stands in ``mimkit/evaluate/spectra.py``.
    """

    ranks = False

    def __init__(
        self,
        geometry: Geometry,
        *,
        pool: Pool = "mean",
        num_images: Few = 2048,
        lidar_images: Few = 1000,
        lidar_renderings: Few = 4,
        every_steps: AnyCount | None = None,
    ) -> None:
        self.pool = pool
        self.num_images = num_images
        self.lidar_images = lidar_images
        self.lidar_renderings = lidar_renderings
        self.every_steps = every_steps

    def check(self, subject: Subject) -> None:
        """Refuses too few images and a missing class token.

        Raises: DataError, RecipeError.
        """
        count = len(evenly_spaced(subject.test, self.num_images))
        if count < _LEAST:
            raise DataError(
                f"evaluator '{_NAME}' needs at least two held-out images, but '"
                f"{subject.test.name}' has {count}. Give more images, or remove this evaluator "
                "from the recipe."
            )
        check_pool(subject, self.pool)

    def work(self, subject: Subject) -> Work:
        """Counts each image once for its features and once for attention, and the renderings."""
        whole = len(evenly_spaced(subject.test, self.num_images))
        few = len(evenly_spaced(subject.test, self.lidar_images))
        return Work(encoded=2 * whole + few * self.lidar_renderings)

    def run(self, subject: Subject) -> list[Result]:
        """Gives every number of the pre-trained encoder that there is."""
        encoder = subject.pretrainer.encoder
        index = evenly_spaced(subject.test, self.num_images)
        few = evenly_spaced(subject.test, self.lidar_images)
        table, cell = Table(subject, _NAME, index, _METRICS), Cell("pretrained", subject.seed)
        protocol = {
            "pool": self.pool,
            "num_images": len(index),
            "lidar_images": len(few),
            "lidar_renderings": self.lidar_renderings,
        }
        depends_on = {"weights": digest(encoder), "options": protocol, **subject.rounding}
        score = table.score(cell, depends_on, lambda: self._score(encoder, subject, index, few))
        return table.results(cell, score, {**protocol, "width": encoder.embed_dim})

    def _score(self, encoder: Encoder, subject: Subject, index: Tensor, few: Tensor) -> Score:
        features = extract(encoder, subject, whole(subject, subject.test, index), self.pool)
        renderings = [
            extract(encoder, subject, self._rendering(subject, few, number), self.pool)
            for number in range(self.lidar_renderings)
        ]
        metrics = {
            "rankme": rankme(features),
            "lidar": lidar(torch.stack(renderings, dim=1)),
            "alpha": decay(features),
            "uniformity": uniformity(features),
            "dead_share": dead_share(features),
        }
        attention = _attention(encoder, subject, index)
        if attention is not None and attention.shape[1] > 1:
            metrics["attention_entropy"] = attention_entropy(attention)
        return Score(metrics)

    @staticmethod
    def _rendering(subject: Subject, few: Tensor, number: int) -> Renderings:
        views = (subject.view,)
        return Renderings(subject.test, few, views, FEATURE_BATCH, VARIATION, _SEED, number)


@torch.no_grad()
def _attention(encoder: Encoder, subject: Subject, index: Tensor) -> Tensor | None:
    """What the last block looks at, (n, N) on the CPU; None of an encoder that does not tell."""
    found = []
    with evaluation_mode(encoder):
        for image in rendered(subject, whole(subject, subject.test, index)):
            with subject.autocast():
                looks = encoder.attention(image)
            if looks is None:
                return None
            found.append(looks.float().cpu())
    return torch.cat(found)
