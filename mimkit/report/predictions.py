"""The picture grid of a run: held-out images, what was hidden, what was predicted."""

from pathlib import Path
from typing import cast

import torch

from mimkit.parts.records import Batch, Picture, View
from mimkit.parts.target import Preparation, Target
from mimkit.report.sheet import Column, contact_sheet, denormalise, masked_input
from mimkit.train.step import Pretrainer


@torch.no_grad()
def prediction_columns(pretrainer: Pretrainer, batch: Batch, view: View) -> list[Column]:
    """Gives the original, what the encoder receives, and every picture that a part offers.

    Args:
        pretrainer: left in the mode it was in.
        batch: a few held-out images with their masks.
        view: the encoder's view, for undoing its normalisation.
    """
    training = pretrainer.training
    pretrainer.eval()
    predictions, compared = pretrainer.predict(batch)
    pictures: list[Picture] = []
    for term in pretrainer.terms:
        prediction = predictions[term.prediction]
        if term.prediction not in pretrainer.head.own_widths:  # else the target cannot read it
            pictures += cast(Target, pretrainer.targets[term.target]).render(prediction, batch)
        pictures += term.loss.render(prediction, compared[term.name], batch)
    pretrainer.train(training)
    image = denormalise(batch.image, view)
    columns = [
        Column("image", image),
        Column("what the encoder sees", masked_input(image, batch.mask)),
    ]
    return columns + [
        Column(p.title, denormalise(p.image, p.view or view), p.correct) for p in pictures
    ]


def draw_predictions(pretrainer: Pretrainer, batch: Batch, view: View, folder: Path) -> None:
    """Writes ``predictions.png``: one row an image, one column a way of looking at it.

    Args: see `prediction_columns`; pictures go into ``folder``.
    """
    contact_sheet(
        folder / "predictions.png",
        prediction_columns(pretrainer, batch, view),
        batch.mask,
        description="Held-out images: the original, what the encoder receives, and what was "
        "predicted; green is right, orange with a cross is wrong.",
    )


def draw_preparation(preparation: Preparation, path: Path) -> None:
    """Writes the pictures of what a target prepared side by side, if it offers any."""
    columns = [Column(title, image) for title, image in preparation.pictures.items()]
    if columns:
        contact_sheet(path, columns, None, description=preparation.title)
