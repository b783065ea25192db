"""Which stages there are, in which order, how long each may take, and at which size it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Stage:
    """A module of `on_gpu.stages` and how long it may run.

    Args:
        name: of its row in the table, unique.
        module: whose ``run`` it is.
        limit_seconds: on a GPU; it is killed then.
        arguments: of ``run``, after the work.
    """

    name: str
    module: str
    limit_seconds: float
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How large all is made; the miniature rehearses every line of it on a CPU.

    Args:
        patience: factor of all time limits.
        codebook_size: codes of the random tokenizer.
        hidden_dim: channels of its first group; the published one has 256.
        num_photos: JPEG files that are made.
        batch_size: images of a step at 224 px.
        preset: of the recipes at 224 px.
        steps: that are measured.
        profile_after: steps of a run before those that are profiled. More than the trial before it
            takes: its steps are counted as well.
        matmul_seconds: how long the matrix products run that the peak is the mean of.
        workers: loader processes.
        selfie: settings of the run that is killed.
        small: settings of the run that is evaluated.
        labels: settings of the run for the table of labels.
        evaluations: each evaluator's options that differ from their defaults.
        finetune: options of the table of labels but its fractions.
        tests: of the files with tests for a GPU, those that run.
    """

    patience: float
    codebook_size: int
    hidden_dim: int
    num_photos: int
    batch_size: int
    preset: str | None
    steps: int
    profile_after: int
    matmul_seconds: float
    workers: int
    selfie: tuple[str, ...]
    small: tuple[str, ...]
    labels: tuple[str, ...]
    evaluations: dict[str, str]
    finetune: str
    tests: str


TOTAL_SECONDS: Final = 530.0
"""For all stages together, on a GPU; what is not used by one is left for the others."""

PLAN: Final = (
    Stage("install", "install", 40),
    Stage("prepare", "prepare", 60),
    Stage("gpu-tests", "suite", 90),
    Stage("beit", "steps", 150, ("beit_in224",)),
    Stage("cae", "steps", 150, ("cae_in224",)),
    Stage("selfie-killed-and-resumed", "killed", 90),
    Stage("beit-where-it-goes", "where", 60, ("beit_in224",)),
    Stage("cae-where-it-goes", "where", 60, ("cae_in224",)),
    Stage("evaluators", "evaluators", 60),
    Stage("loader", "loader", 30),
    Stage(
        "beit-relative-positions",
        "steps",
        120,
        ("beit_in224", 'encoder.positions="relative"', "encoder.layer_scale=0.1"),
    ),
    Stage("beit-bfloat16-stream", "steps", 90, ("beit_in224", 'encoder.stream="bfloat16"')),
    Stage("selfie-labels", "labels", 240),
)
"""The most important first: what the time does not suffice for is left out at the end."""

_ALWAYS: Final = ("install", "prepare")

GPU: Final = Sizes(
    patience=1,
    codebook_size=8192,
    hidden_dim=256,
    num_photos=4096,
    batch_size=256,
    preset=None,
    steps=10,
    profile_after=60,
    matmul_seconds=3.0,
    workers=15,
    selfie=(
        "train.total_steps=600",
        "train.checkpoint_every_steps=100",
        "train.log_every_steps=20",
    ),
    small=("train.total_steps=40",),
    labels=("train.total_steps=2000",),
    evaluations={
        "heldout": "",
        "health": "",
        "knn": "",
        "knn_consistency": "",
        "linear_probe": 'layers = "all", pools = ["mean", "cls"]',
        "attentive_probe": "num_heads = 3, total_steps = 300, lrs = [0.1]",
        "finetune": "label_fractions = [0.1], seeds = 1, total_steps = 300, "
        'lrs = [1e-3], optimizer = "adamw"',
        "segmentation": 'head = "upernet", width = 128, seeds = 1, total_steps = 200',
        "detection": "seeds = 1, total_steps = 60, warmup_steps = 10, num_test_images = 200",
    },
    finetune="seeds = 3, total_steps = 1000",
    tests="gpu",
)

MINIATURE: Final = Sizes(
    patience=10,
    codebook_size=64,
    hidden_dim=16,
    num_photos=24,
    batch_size=4,
    preset="tiny",
    steps=2,
    profile_after=20,
    matmul_seconds=0.2,
    workers=1,
    selfie=(
        "train.total_steps=12",
        "train.checkpoint_every_steps=3",
        "train.log_every_steps=1",
        "train.batch_size=8",
        "encoder.width=8",
        "encoder.depths=[1, 1, 1, 1]",
        "data.num_images=500",
        "data.num_test_images=100",
    ),
    small=(
        "train.total_steps=2",
        "train.batch_size=16",
        "train.warmup_epochs=0",
        "encoder.depth=2",
        "encoder.embed_dim=48",
        "data.num_images=500",
        "data.num_test_images=100",
    ),
    labels=(
        "train.total_steps=4",
        "train.batch_size=8",
        "encoder.width=8",
        "encoder.depths=[1, 1, 1, 1]",
        "data.num_images=500",
        "data.num_test_images=100",
    ),
    evaluations={
        "heldout": "num_images = 50",
        "health": "num_images = 50, lidar_images = 20, lidar_renderings = 2",
        "knn": "",
        "knn_consistency": "num_images = 50",
        "linear_probe": "weight_decays = [1e-3]",
        "attentive_probe": "num_heads = 3, total_steps = 4, lrs = [0.1], "
        "batch_size = 16, warmup_steps = 1",
        "finetune": "label_fractions = [0.1], seeds = 1, total_steps = 4, "
        "batch_size = 16, warmup_steps = 1, lrs = [0.1]",
        "segmentation": "seeds = 1, total_steps = 3, batch_size = 8, num_test_images = 20",
        "detection": "seeds = 1, total_steps = 2, warmup_steps = 1, batch_size = 4, "
        "num_test_images = 8, fpn_channels = 16, head_width = 16, num_sampled = 16",
    },
    finetune="seeds = 1, total_steps = 4, batch_size = 16, warmup_steps = 1, lrs = [0.1]",
    tests="not gpu and not slow and not download and not browser",
)


def sizes(device: str) -> Sizes:
    """Returns the sizes for a device: everything but CUDA rehearses."""
    return GPU if device.startswith("cuda") else MINIATURE


def chosen(words: Sequence[str]) -> list[Stage]:
    """Returns the stages whose names hold one of the words, and those that all need; all for none.

    Raises: ValueError for a word that no name holds.
    """
    for word in words:
        if not any(word in stage.name for stage in PLAN):
            names = ", ".join(stage.name for stage in PLAN)
            raise ValueError(f"no stage has '{word}' in its name. There are: {names}")
    return [
        stage
        for stage in PLAN
        if not words or stage.name in _ALWAYS or any(word in stage.name for word in words)
    ]
