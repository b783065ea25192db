"""The table of an evaluation: labels x seed x start x setting -> score, each cell measured once."""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from mimkit import words
from mimkit.evaluate.base import Plain, Result, Subject
from mimkit.evaluate.score import Score
from mimkit.files import write_text
from mimkit.parts.records import View

_VERSION: Final = 2
"""Rises when the same options come to mean another measurement, or a cell keeps more of it."""


@dataclass(frozen=True)
class Cell:
    """One place of the table.

    >>> print(Cell("scratch", 0, 0.05, {"lr": 0.1}))
    5 % of the labels, scratch, seed 0, lr 0.1

    Args:
        init: the start, as in `mimkit.evaluate.base.Result`.
        seed: of the labels, and of all that is drawn.
        fraction: of the labels that are trained on; None where nothing is.
        setting: what else sets it apart, such as a learning rate, a layer.
        split: whose images are judged: "development" ones while something is chosen.
    """

    init: str
    seed: int
    fraction: float | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)
    split: Literal["development", "test"] = "test"

    def __str__(self) -> str:
        if self.fraction is None:
            return self.init
        named = [f"{name} {_short(value)}" for name, value in self.setting.items()]
        share = f"{100 * self.fraction:g} % of the labels"
        return ", ".join([share, self.init, f"seed {self.seed}", *named])

    @property
    def record(self) -> dict[str, Any]:
        """What the file says of it."""
        return {
            "split": self.split,
            "fraction": self.fraction,
            "init": self.init,
            "seed": self.seed,
            **self.setting,
        }


class Table:
    """The cells of one evaluation, each scored once, also if the run is killed between.

    Several threads may ask it.

    Args:
        subject: what is judged; finished cells are kept in its ``workdir``.
        evaluator: whose it is.
        test: (m,) int64, the images of the test split to judge.
        metrics: what each cell is scored by (`mimkit.evaluate.score.Score`), in its order; but for
            the first, a cell may lack some.
        view: how images are rendered; None for the encoder's own view.
    """

    def __init__(
        self,
        subject: Subject,
        evaluator: str,
        test: Tensor,
        metrics: Sequence[str] = ("accuracy",),
        view: View | None = None,
    ) -> None:
        self.subject = subject
        self.evaluator = evaluator
        self.test = test
        self.metrics = tuple(metrics)
        self.images = [
            subject.train.fingerprint,
            subject.test.fingerprint,
            asdict(view or subject.view),
        ]
        self.cells = Cells(subject.workdir / "cells.jsonl")
        self.lock = threading.Lock()

    def score(
        self,
        cell: Cell,
        depends_on: Mapping[str, object],
        measure: Callable[[], Score],
        *,
        judged: Tensor | None = None,
        note: str = "",
    ) -> Score:
        """Measures a cell and tells of it, unless that was done before.

        Args:
            cell: which one.
            depends_on: everything but images and cell that changes the number, as plain data, such
                as the ``digest`` of the weights and the options. Its "cell" replaces the record.
            measure: does it.
            judged: the images that it judges; None for those of the test split.
            note: ends the line that tells of it.
        """
        key = cell_key(**{"data": self.images, "cell": cell.record, **depends_on})
        with self.lock:
            known = self.cells.get(key)
        if known is not None:
            return self._read(cell, known)
        score = measure()
        with self.lock:
            tell = self.subject.report if cell.split == "test" else self.subject.detail
            num_images = len(self.test if judged is None else judged)
            tell(self._line(cell, score, num_images, note))
            self.cells.add(
                key,
                {
                    **cell.record,
                    **score.metrics,
                    "loss": score.loss,
                    "image_scores": score.image_scores,
                    **({"other_scores": dict(score.other_scores)} if score.other_scores else {}),
                    **({"parts": dict(score.parts)} if score.parts else {}),
                    **({"curves": dict(score.curves)} if score.curves else {}),
                    **score.chosen,
                },
            )
        return score

    def results(
        self,
        cell: Cell,
        score: Score,
        protocol: Mapping[str, Plain],
        chosen: Mapping[str, Plain] | None = None,
    ) -> list[Result]:
        """Gives the results of a cell of the test split, one for each metric."""
        return [
            Result(
                evaluator=self.evaluator,
                metric=metric,
                value=score.metrics[metric],
                num_images=len(self.test),
                seed=cell.seed,
                init=cell.init,
                protocol=protocol,
                chosen=chosen or {},
                image_scores=(
                    score.image_scores
                    if metric == self.metrics[0]
                    else score.other_scores.get(metric)
                ),
                parts=score.parts if metric == self.metrics[0] else {},
                curves=score.curves if metric == self.metrics[0] else {},
            )
            for metric in self.metrics
            if metric in score.metrics
        ]

    def _read(self, cell: Cell, record: Mapping[str, Any]) -> Score:
        rest = {name: held for name, held in record.items() if name not in {"key", *cell.record}}
        metrics = {name: rest.pop(name) for name in self.metrics if name in rest}
        loss, scores = (rest.pop(name, None) for name in ("loss", "image_scores"))
        others, parts, curves = (rest.pop(name, {}) for name in ("other_scores", "parts", "curves"))
        return Score(metrics, loss, scores, others, parts, curves, rest)

    def _line(self, cell: Cell, score: Score, num_images: int, note: str) -> str:
        images = f"{num_images:,} {cell.split} images"
        metric = self.metrics[0]
        value = f"{100 * score.value:.1f} %" if words.is_share(metric) else f"{score.value:.3g}"
        shown = f"{metric} {value}, {images}"
        if words.is_mean_of_images(metric):
            shown = f"{100 * score.value:.1f} % of {images}"
        if score.loss is not None and not math.isfinite(score.loss):
            note = "diverged"
        return f"{self.evaluator}, {cell}: {shown}" + (f" ({note})" if note else "")


class Cells:
    """A file with one JSON line for every finished cell.

    A cell is found again by everything its result depends on, so a changed option, subset or
    weight is measured anew, never mistaken for what was measured before.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._records: dict[str, dict[str, Any]] = {}
        for line in lines:
            record = json.loads(line)
            self._records[record["key"]] = record

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns a finished cell, or None."""
        return self._records.get(key)

    def add(self, key: str, record: Mapping[str, object]) -> None:
        """Writes a finished cell down; the file is whole at every moment.

        One that holds NaN or an infinity, which JSON cannot, is left out and so measured again.
        """
        self._records[key] = {"key": key, **record}
        write_text(self.path, "".join(map(_line, self._records.values())))


def _line(record: Mapping[str, object]) -> str:
    try:
        return json.dumps(record, allow_nan=False) + "\n"
    except ValueError:
        return ""


def cell_key(**depends_on: object) -> str:
    """Returns a short name for everything a result depends on; the values are plain data.

    The rules of measuring are part of it, so that what an earlier version has kept is not taken.
    """
    text = json.dumps([_VERSION, depends_on], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def digest(module: nn.Module) -> str:
    """Returns a hexadecimal digest of all weights and buffers of a module."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()


def _short(value: Plain) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
