"""The data set ``shapes``: readable by arrangement only."""

import itertools
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mimkit.data.drawing import split
from mimkit.data.shapes import SHAPES

CLASSES, draw = SHAPES.classes, SHAPES.draw


def load(name, count, seed=0):
    """Standardised pixels (count, 3, 32, 32) and labels (count,)."""
    images, labels = draw(split(name, count), image_size=32, seed=seed)
    return (torch.from_numpy(images).float() / 255 - 0.5) / 0.19, torch.from_numpy(labels)


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


def fit_linear(features, labels, weight_decay):
    """Multinomial logistic regression, trained until it stands still."""
    model = nn.Linear(features.shape[1], len(CLASSES))
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        penalty = weight_decay * model.weight.square().sum()
        loss = F.cross_entropy(model(features), labels) + penalty
        loss.backward()
        return loss

    optimizer.step(objective)
    return model


def test_pictures_are_pinned():
    images, labels = draw(split("train", 20), image_size=32)
    assert labels.tolist() == [1, 9, 0, 8, 4, 6, 7, 2, 3, 5, 9, 1, 5, 2, 4, 7, 8, 6, 0, 3]
    assert zlib.crc32(images.tobytes()) == 2176861684


def test_colours_do_not_tell_the_class():
    def statistics(images):
        flat = images.flatten(2)
        quantiles = flat.quantile(torch.linspace(0, 1, 9), dim=2).permute(1, 2, 0).flatten(1)
        return torch.cat([flat.mean(dim=2), flat.std(dim=2), quantiles], dim=1)  # (B, 33)

    images, labels = load("train", 3000)
    test_images, test_labels = load("test", 2000)
    model = fit_linear(statistics(images), labels, weight_decay=1e-4)
    assert accuracy(model, statistics(test_images), test_labels) < 0.25


@pytest.mark.slow
def test_linear_probe_on_pixels_stays_under_40_percent():
    images, labels = load("train", 5000)
    test_images, test_labels = load("test", 2000)
    for weight_decay in (1e-2, 1e-1, 1):
        model = fit_linear(images.flatten(1), labels, weight_decay)
        assert accuracy(model, test_images.flatten(1), test_labels) < 0.4


@pytest.mark.slow
def test_small_convnet_passes_90_percent():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = []
        for fan_in, fan_out in itertools.pairwise((3, 16, 32, 64, 96)):
            conv = nn.Conv2d(fan_in, fan_out, kernel_size=3, padding=1)
            layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU(), nn.MaxPool2d(2)]
        model = nn.Sequential(
            *layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)
        )
        assert sum(p.numel() for p in model.parameters()) <= 150_000

        images, labels = load("train", 10_000)
        num_epochs, batch_size = 4, 50
        total_steps = num_epochs * len(images) // batch_size
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=total_steps)
        for _ in range(num_epochs):
            for batch in torch.randperm(len(images)).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    assert accuracy(model.eval(), *load("test", 2000)) > 0.9
