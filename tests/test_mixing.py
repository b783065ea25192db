"""Erasing, mixup and CutMix of training batches."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy

from mimkit.evaluate.mixing import Mixing
from mimkit.evaluate.randaugment import global_random_state_kept, seed_global_random

NUM_CLASSES = 4
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.fixture
def image():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def mixing(mixup=0.0, cutmix=0.0, random_erasing=0.0) -> Mixing:
    return Mixing(
        mixup=mixup, cutmix=cutmix, random_erasing=random_erasing, num_classes=NUM_CLASSES
    )


def weight(labels: torch.Tensor) -> torch.Tensor:
    """How much of each image's own class is left; the pairs 0-5, 1-4, 2-3 have two classes."""
    return labels.gather(1, LABELS[:, None])[:, 0]


def test_mixup_blends_images_and_labels_alike(image):
    mixed, labels = mixing(mixup=0.8)(image.clone(), LABELS, 1)
    own = weight(labels)
    assert 0 < own[0] < 1
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    expected = own[0] * image + (1 - own[0]) * image.flip(0)
    torch.testing.assert_close(mixed, expected)


def test_cutmix_exchanges_a_rectangle_of_its_labels_weight(image):
    mixed, labels = mixing(cutmix=1.0)(image.clone(), LABELS, 2)
    exchanged = (mixed != image).any(1)  # (B, H, W)
    assert torch.equal(mixed, torch.where(exchanged[:, None], image.flip(0), image))
    torch.testing.assert_close(exchanged.float().mean((1, 2)), 1 - weight(labels))
    assert 0 < weight(labels)[0] < 1
    rows, cols = exchanged[0].any(1), exchanged[0].any(0)
    assert torch.equal(exchanged[0], rows[:, None] & cols)


def test_with_both_each_batch_draws_one(image):
    num_cut = 0
    for seed in range(200):
        mixed, _ = mixing(mixup=0.8, cutmix=1.0)(image.clone(), LABELS, seed)
        untouched = (mixed == image).float().mean()
        num_cut += bool(untouched > 0)  # mixup changes every pixel
    assert 75 < num_cut < 125


def test_erasing_puts_noise_into_some_images_and_keeps_the_labels(image):
    torch.manual_seed(0)
    images = image[:1].expand(400, -1, -1, -1).clone()
    before = images.clone()
    labels = torch.zeros(400, dtype=torch.int64)
    erased, after = mixing(random_erasing=0.25)(images, labels, 1)
    assert torch.equal(after, labels)
    hit = (erased != before).flatten(1).any(1)
    assert 70 < hit.sum() < 130
    noise = erased[erased != before]
    assert noise.mean() == pytest.approx(0, abs=0.05)
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_a_batch_follows_from_its_seed(image):
    def run(seed):
        torch.manual_seed(0)
        return mixing(mixup=0.8, cutmix=1.0, random_erasing=0.5)(image.clone(), LABELS, seed)

    random.seed(1)
    np.random.seed(1)
    python, legacy = random.getstate(), np.random.get_state()
    mixed, labels = run(2**62 + 3)
    assert random.getstate() == python
    assert all(np.array_equal(*each) for each in zip(np.random.get_state(), legacy, strict=True))
    random.seed(2)
    np.random.seed(2)
    again, labels_again = run(2**62 + 3)
    assert torch.equal(again, mixed)
    assert torch.equal(labels_again, labels)
    assert not torch.equal(run(4)[0], mixed)


def test_smoothing_in_the_loss_is_that_of_timm(image):
    logits = torch.randn(6, NUM_CLASSES, generator=torch.Generator().manual_seed(1))
    _, labels = mixing(mixup=0.8)(image.clone(), LABELS, 7)
    ours = F.cross_entropy(logits, labels, label_smoothing=0.1)
    with global_random_state_kept():
        seed_global_random(7)
        _, smoothed = Mixup(0.8, label_smoothing=0.1, num_classes=NUM_CLASSES)(image, LABELS)
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(logits, smoothed))
