"""The evaluations that all methods of a comparison share, sized by data and budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mimkit.data.source import Source
from mimkit.errors import RecipeError, nearest

LABELLED: Final = ("knn", "linear_probe", "attentive_probe", "finetune")
UNLABELLED: Final = ("knn_consistency",)
ASKED_FOR: Final = ("health",)
"""What ranks no method, so that it is measured only where somebody names it."""
DENSE: Final = ("segmentation", "detection")
"""What masks and objects allow."""
TRAINED: Final = ("attentive_probe", "finetune", *DENSE)
"""Those whose time grows with `Sizes.steps`."""
_FRACTIONS: Final = (0.01, 0.1, 1.0)
_LABELS_PER_CLASS: Final = 5
_BATCH: Final = 64
_DENSE_BATCH: Final = 16
_DENSE_WIDTH: Final = 64
"""Of the detector's maps: a quarter of the papers', since networks and budgets here are small."""
_LEAST_STEPS: Final = 50
_MOST_TEST_IMAGES: Final = 10_000
_LACKS_LABELS: Final = (
    "needs labels, but the data set has none. Name a labelled folder, or a table of files and "
    "labels, with --labels."
)
_LACKS: Final = {
    "segmentation": "needs masks, but the data set has none. Put them into masks/ beside images/.",
    "detection": "needs objects, but the data set has none. Put a COCO JSON beside the images.",
}


@dataclass(frozen=True)
class Sizes:
    """How large the evaluations are.

    Args:
        fractions: shares of the labels.
        train_images: images that neighbours are looked for among.
        test_images: images that are judged.
        steps: of one training.
        dense: evaluations that masks and objects of the images allow.
        choosing: they only tell which of several recipes is better: nothing is judged beside that.
    """

    fractions: tuple[float, ...]
    train_images: int
    test_images: int
    steps: int
    dense: tuple[str, ...] = ()
    choosing: bool = False


def choose_sizes(images: float, labelled: Source | None) -> Sizes:
    """Sizes the evaluations so that they cost about as much as pre-training.

    Label fractions are the two smallest of 1, 10 and 100 % that leave five labels a class.

    Args:
        images: seen in pre-training.
        labelled: the split whose labels, masks or objects are used; None if there is none.
    """
    fractions: tuple[float, ...] = ()
    if labelled is not None and labelled.labels is not None:
        a_class = int((labelled.labels >= 0).sum()) / max(1, len(labelled.classes))
        fractions = tuple(f for f in _FRACTIONS if f * a_class >= _LABELS_PER_CLASS)[:2] or (1.0,)
    return Sizes(
        fractions,
        train_images=_between(2_000, images / 4, 100_000),
        test_images=_between(1_000, images / 10, _MOST_TEST_IMAGES),
        steps=_between(_LEAST_STEPS, images / 500, 10_000),
        dense=() if labelled is None else _dense(labelled),
    )


def _dense(labelled: Source) -> tuple[str, ...]:
    there = {
        "segmentation": labelled.masks is not None and len(labelled.masks.classes) > 1,
        "detection": labelled.objects is not None,
    }
    return tuple(name for name in DENSE if there[name])


def for_trials(sizes: Sizes) -> Sizes:
    """Judges by as many images as a comparison ever does, since a choice by few is one by luck."""
    return replace(sizes, test_images=_MOST_TEST_IMAGES, choosing=True)


def chosen_by(names: Sequence[str] | None, sizes: Sizes) -> str:
    """Names the evaluation by which settings are chosen: the first that reads labels.

    Raises: RecipeError if there is none, or the data have no labels.
    """
    if not sizes.fractions:
        raise RecipeError(f"--tune: {_LACKS_LABELS}")
    asked = [name for name in names or LABELLED if name in LABELLED]
    if not asked:
        raise RecipeError(
            f"--tune: settings are chosen by labels, so that --evaluate must name one of "
            f"{', '.join(LABELLED)}, but names {', '.join(names or ())}. Add knn, the cheapest."
        )
    return asked[0]


def shorten(sizes: Sizes, share: float) -> Sizes:
    """Gives the trainings a share of their steps, but at least 50."""
    return replace(sizes, steps=_between(_LEAST_STEPS, share * sizes.steps, sizes.steps))


def evaluations(
    names: Sequence[str] | None, sizes: Sizes, *, has_cls: bool, total_steps: int
) -> list[dict[str, Any]]:
    """The ``[[evaluate]]`` tables of one method: the same for all, but for the class token.

    Without names all that the data allow are taken; but where images have labels of their own,
    segmentation and detection must be asked for, since they cost as much as all others together.

    Args:
        names: which; None for all that the data allow.
        sizes: how large.
        has_cls: whether the encoder has a class token, which then is probed too.
        total_steps: of pre-training, in which held-out images are looked at five times; 0 where
            there is none, and so no task of its own to judge by.

    Raises: RecipeError for a name that is no evaluation of a comparison, or one for which the data
        lack labels, masks or objects.
    """
    known = (*LABELLED, *UNLABELLED, *ASKED_FOR, *DENSE)
    labelled = LABELLED if sizes.fractions else ()
    possible = (*labelled, *UNLABELLED, *ASKED_FOR, *sizes.dense)
    for name in names or ():
        if name not in known:
            raise RecipeError(
                f"--evaluate {name}: must be one of {', '.join(known)}.{nearest(name, known)}"
            )
        if name not in possible:
            raise RecipeError(f"--evaluate {name}: {_LACKS.get(name, _LACKS_LABELS)}")
    chosen = names or (LABELLED if sizes.fractions else (*UNLABELLED, *sizes.dense))
    tables = sized(sizes, has_cls=has_cls)
    if not total_steps:
        return [{"part": name, **tables[name]} for name in chosen]
    heldout = {"part": "heldout", "every_steps": max(1, total_steps // 5), "num_images": 1_000}
    beside = [] if sizes.choosing else [heldout]
    return [*beside, *({"part": name, **tables[name]} for name in chosen)]


def sized(sizes: Sizes, *, has_cls: bool) -> dict[str, dict[str, Any]]:
    """The options of every evaluation of a comparison, by its name."""
    return {
        "knn": {"num_images": sizes.train_images, "num_test_images": sizes.test_images},
        "knn_consistency": {"num_images": sizes.test_images},
        "health": {"num_images": sizes.test_images},
        "linear_probe": {
            "layers": "all",
            "pools": ["mean", "cls"] if has_cls else ["mean"],
            "label_fractions": list(sizes.fractions),
            "weight_decays": [1e-3, 1e-2, 1e-1],
            "num_test_images": sizes.test_images,
        },
        "attentive_probe": {
            "label_fractions": list(sizes.fractions[-1:]),
            "total_steps": 2 * sizes.steps,
            "warmup_steps": sizes.steps // 5,
            "lrs": [0.01, 0.03, 0.1],
            "num_test_images": sizes.test_images,
        },
        "finetune": {
            "label_fractions": list(sizes.fractions),
            "seeds": 1,
            "augmentation": "standard",
            "optimizer": "adamw",
            "lrs": [1e-3, 3e-3],
            "total_steps": sizes.steps,
            "batch_size": _BATCH,
            "warmup_steps": sizes.steps // 10,
            "weight_decay": 0.05,
            "num_test_images": sizes.test_images,
            **({"baseline": False} if sizes.choosing else {}),
        },
        "segmentation": {
            # On small patches UPerNet works on maps of single pixels, which a CPU is slow at.
            "head": "linear",
            "frozen": False,
            "seeds": 1,
            "lrs": [1e-3],
            "total_steps": sizes.steps * _BATCH // _DENSE_BATCH,  # as many images as fine-tuning
            "batch_size": _DENSE_BATCH,
            "warmup_steps": sizes.steps * _BATCH // _DENSE_BATCH // 10,
            "num_test_images": sizes.test_images,
        },
        "detection": {
            "seeds": 1,
            "lrs": [1e-3],
            "total_steps": sizes.steps,
            "batch_size": _DENSE_BATCH,
            "warmup_steps": sizes.steps // 10,
            "fpn_channels": _DENSE_WIDTH,
            "head_width": 4 * _DENSE_WIDTH,
            "num_sampled": 2 * _DENSE_WIDTH,
            "num_test_images": sizes.test_images,
        },
    }


def _between(low: int, value: float, high: int) -> int:
    return round(min(max(value, low), high))
