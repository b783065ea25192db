import dataclasses
import json
import random

import numpy as np
import pytest
import torch

from mimkit import Grid
from mimkit.errors import BoundaryError, RecipeError
from mimkit.evaluate.classifier import (
    Classifier,
    backbone_of,
    layer_scales,
    recompute_batch_norm,
    train_classifier,
)
from mimkit.evaluate.finetune import FineTune
from mimkit.evaluate.images import TrainingImages
from mimkit.evaluate.score import Score
from mimkit.evaluate.statistics import summarise
from mimkit.parts.encoder import Backbone

QUICK = {"total_steps": 3, "batch_size": 8, "warmup_steps": 1, "optimizer": "adamw"}
ONCE = {**QUICK, "label_fractions": (0.5,), "seeds": 1, "lrs": (0.01,)}
REGULARISED = {
    "label_smoothing": 0.1,
    "layer_decay": 0.65,
    "drop_path": 0.3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "min_lr": 1e-6,
}


def cells(subject):
    path = subject.workdir / "cells.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_result_has_its_baseline_with_the_same_labels(subject, geometry):
    evaluator = FineTune(geometry, label_fractions=(0.25, 0.5), seeds=2, lrs=(0.001,), **QUICK)
    results = evaluator.run(subject)
    keys = {(r.init, r.seed, r.protocol["label_fraction"]) for r in results}
    assert len(results) == len(keys) == 8
    for result in results:
        assert result.protocol["num_labels"] == 120 * result.protocol["label_fraction"]
        assert 0 <= result.value <= 1
        assert result.num_images == 40


def test_the_learning_rate_is_chosen_on_development_images_alone(subject, geometry):
    lrs = (1e-9, 0.01)
    options = {**QUICK, "total_steps": 60, "batch_size": 32}
    results = FineTune(geometry, label_fractions=(1.0,), seeds=1, lrs=lrs, **options).run(subject)
    searched = [cell for cell in cells(subject) if cell["split"] == "development"]
    assert {(cell["init"], cell["lr"]) for cell in searched} == {
        (init, lr) for init in ("pretrained", "scratch") for lr in lrs
    }
    for result in results:
        best = max(
            (cell for cell in searched if cell["init"] == result.init),
            key=lambda cell: cell["accuracy"],
        )
        assert result.chosen == {"lr": best["lr"]}


def test_finished_cells_are_not_measured_again(subject, geometry, monkeypatch):
    def evaluate(**changes):
        options = {**QUICK, **changes}
        return FineTune(geometry, label_fractions=(0.5,), seeds=1, lrs=(0.001,), **options).run(
            subject
        )

    first = evaluate()
    monkeypatch.setattr(
        "mimkit.evaluate.trainer.train_classifier", lambda *_, **__: pytest.fail("trained again")
    )
    assert evaluate() == first
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        evaluate(total_steps=4)
    with torch.no_grad():
        next(subject.pretrainer.encoder.parameters()).add_(1)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        evaluate()


def test_the_subject_and_the_random_state_stay_as_they_were(subject, geometry):
    subject.pretrainer.train()
    before = {k: v.clone() for k, v in subject.pretrainer.state_dict().items()}
    state = torch.random.get_rng_state()
    FineTune(geometry, label_fractions=(0.5,), seeds=1, lrs=(0.1,), **QUICK).run(subject)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in subject.pretrainer.modules())
    for name, value in subject.pretrainer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_evaluation_gives_the_same_numbers(subject, geometry):
    evaluator = FineTune(geometry, label_fractions=(1.0,), seeds=1, lrs=(0.01,), **QUICK)
    first = evaluator.run(subject)
    (subject.workdir / "cells.jsonl").unlink()
    assert evaluator.run(subject) == first


def test_a_head_without_pooling_is_refused(subject, geometry):
    evaluator = FineTune(geometry, network="pooled", lrs=(0.1,), seeds=1, **QUICK)
    with pytest.raises(RecipeError, match=r"'pooled' needs a head with a learned pooling"):
        evaluator.run(subject)


def test_layers_below_learn_more_slowly(subject):
    network = Classifier(subject.pretrainer.encoder.backbone(), 10)
    scales = layer_scales(network.backbone, 0.5)
    groups = network.backbone.layer_groups()
    assert {scales[p] for p in groups[-1]} == {1.0}
    assert {scales[p] for p in groups[-2]} == {0.5}
    assert {scales[p] for p in groups[0]} == {0.5 ** (len(groups) - 1)}
    assert network.output.weight not in scales


class Forgetful(Backbone):
    num_features = 4

    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, image):
        return self.two(self.one(image))

    def layer_groups(self):
        return [list(self.one.parameters())]


def test_a_backbone_that_forgets_parameters_is_told():
    with pytest.raises(BoundaryError, match="every trainable parameter"):
        layer_scales(Forgetful(), 0.5)


def test_batch_statistics_become_those_of_the_images():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout())
    network[0].running_mean.fill_(7)
    images = [torch.randn(8, 3, 4, 4) + 2 for _ in range(4)]
    network.train()
    recompute_batch_norm(network, images)
    torch.testing.assert_close(
        network[0].running_mean, torch.cat(images).mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-5
    )
    assert network[0].momentum == 0.1
    assert network.training


class Pooling(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((16,), 2.0))

    def forward(self, tokens):
        return self.scale * tokens.patches.mean(dim=1)


def test_the_heads_pooling_replaces_the_backbones(subject, geometry, monkeypatch):
    pooling = Pooling()
    monkeypatch.setattr(type(subject.pretrainer.head), "pooling", lambda self: pooling)
    image = torch.randn(2, 3, 16, 16)
    network = backbone_of(subject.pretrainer.eval(), "pooled").eval()
    tokens = subject.pretrainer.encoder.features(image)
    assert torch.equal(network(image), 2.0 * tokens.patches.mean(dim=1))
    weights = {id(p) for p in subject.pretrainer.encoder.parameters()}
    assert weights.isdisjoint(id(p) for p in network.parameters())
    assert layer_scales(network, 0.5)[pooling.scale] == 0.5
    FineTune(geometry, network="pooled", label_fractions=(0.5,), seeds=1, **QUICK).check(subject)


def test_what_cannot_be_done_is_refused_before_training(subject, geometry):
    with pytest.raises(RecipeError, match=r"'pooled' needs a head with a learned pooling"):
        FineTune(geometry, network="pooled", label_fractions=(0.5,), **QUICK).check(subject)
    with pytest.raises(RecipeError, match="no class has two labelled images"):
        FineTune(geometry, label_fractions=(0.01,), lrs=(0.1, 1.0), **QUICK).check(subject)
    FineTune(geometry, label_fractions=(0.01,), lrs=(0.1,), **QUICK).check(subject)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"weight_decay": 0.5},
        {"lrs": (0.02,)},
        {"layer_decay": 0.5},
        {"label_smoothing": 0.1},
        {"num_test_images": 20},
        {"min_lr": 0.001},
        {"drop_path": 0.5},
        {"mixup": 0.8},
        {"cutmix": 1.0},
        {"rand_augment": "rand-m9"},
        {"random_erasing": 0.25},
        {"image_size": 24},
    ],
)
def test_evaluations_by_another_protocol_are_never_taken_together(subject, geometry, change):
    results = FineTune(geometry, **ONCE).run(subject)
    results += FineTune(geometry, **(ONCE | change)).run(subject)
    assert len(summarise(results)["summaries"]) == 4
    assert len(cells(subject)) == 4


def test_without_a_baseline_nothing_starts_from_scratch(subject, geometry):
    evaluator = FineTune(
        geometry, label_fractions=(0.5,), seeds=2, lrs=(0.01,), baseline=False, **QUICK
    )
    assert [(r.init, r.seed) for r in evaluator.run(subject)] == [
        ("pretrained", 0),
        ("pretrained", 1),
    ]


def test_two_rates_alike_on_development_images_are_told_apart_by_the_loss(
    subject, geometry, monkeypatch
):
    losses = iter((0.9, 0.5, 0.7, 0.3))
    monkeypatch.setattr(
        "mimkit.evaluate.trainer.score_classifier",
        lambda *_, **__: Score({"accuracy": 0.5}, next(losses), ""),
    )
    options = {"label_fractions": (1.0,), "seeds": 1, "baseline": False, **QUICK}
    (result,) = FineTune(geometry, lrs=(0.1, 0.2, 0.3), **options).run(subject)
    assert result.chosen == {"lr": 0.2}


def test_a_diverged_training_is_said_and_never_chosen(subject, geometry):
    said, details = [], []
    options = {**QUICK, "optimizer": "sgd", "total_steps": 6}
    evaluator = FineTune(
        geometry, label_fractions=(1.0,), seeds=1, lrs=(1e30, 0.01), baseline=False, **options
    )
    told = dataclasses.replace(subject, report=said.append, detail=details.append)
    (result,) = evaluator.run(told)
    assert result.chosen == {"lr": 0.01}
    assert [line.endswith("(diverged)") for line in details] == [True, False]
    assert all(line.endswith("development images") for line in details[1:])
    assert [line.endswith("test images") for line in said] == [True]


@pytest.mark.parametrize("rand_augment", [None, "rand-m9-p1"])
def test_statistics_are_those_of_mixed_batches(subject, geometry, monkeypatch, rand_augment):
    """A data set sorted by class must not give batches of one class."""
    order = subject.train.labels.argsort(stable=True)
    sorted_train = dataclasses.replace(
        subject.train, pixels=subject.train.pixels[order], labels=subject.train.labels[order]
    )
    monkeypatch.setattr("mimkit.evaluate.trainer.FEATURE_BATCH", 30)
    seen = []
    monkeypatch.setattr(
        "mimkit.evaluate.trainer.recompute_batch_norm", lambda _, images: seen.extend(images)
    )
    options = {**ONCE, "label_fractions": (1.0,), "baseline": False}
    evaluator = FineTune(geometry, rand_augment=rand_augment, **options)
    evaluator.run(dataclasses.replace(subject, train=sorted_train))
    assert [len(images) for images in seen] == [30] * 4
    whole = sorted_train.view(torch.arange(120), subject.view)
    for images in seen:
        same = (images[:, None] == whole[None]).flatten(2).all(2)
        assert len(sorted_train.labels[same.int().argmax(1)].unique()) >= 6


def test_both_starts_differ_in_the_pre_trained_weights_alone(subject, geometry, monkeypatch):
    with torch.no_grad():
        subject.pretrainer.encoder.patch_embed.proj.weight.add_(1)
    starts, streams = [], []

    def record(network, images, *_, **__):
        starts.append({name: value.clone() for name, value in network.state_dict().items()})
        streams.append(images[0])

    monkeypatch.setattr("mimkit.evaluate.trainer.train_classifier", record)
    FineTune(geometry, label_fractions=(0.5,), seeds=2, lrs=(0.01,), **QUICK).run(subject)
    ours, scratch, ours_again, scratch_again = starts
    name = "backbone.vit.patch_embed.proj.weight"
    assert torch.equal(ours[name], subject.pretrainer.encoder.patch_embed.proj.weight)
    assert torch.equal(scratch[name], subject.fresh(0).encoder.patch_embed.proj.weight)
    assert torch.equal(ours_again[name], ours[name])
    assert torch.equal(scratch_again[name], subject.fresh(1).encoder.patch_embed.proj.weight)
    assert torch.equal(ours["output.weight"], scratch["output.weight"])
    assert not torch.equal(ours["output.weight"], ours_again["output.weight"])
    # The same images, cropped and flipped alike; others for another seed.
    assert torch.equal(streams[0][1]["image"], streams[1][1]["image"])
    assert not torch.equal(streams[0][1]["image"], streams[2][1]["image"])


# ------------------------------------------------------------------ regularisation, as of 2021


def record_training(monkeypatch):
    """Keeps what is about to be trained, and trains nothing."""
    trainings = []
    monkeypatch.setattr(
        "mimkit.evaluate.trainer.train_classifier",
        lambda network, images, *_, **options: trainings.append((network, images, options)),
    )
    return trainings


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
def test_loader_processes_and_the_global_generators_change_no_number(subject, geometry):
    def evaluate(workers):
        random.seed(workers)
        np.random.seed(workers)
        torch.manual_seed(workers)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        results = evaluator.run(dataclasses.replace(subject, workers=workers))
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
        losses = [cell["loss"] for cell in cells(subject)]
        (subject.workdir / "cells.jsonl").unlink()
        return results, losses

    evaluator = FineTune(geometry, **ONCE, **REGULARISED)
    assert evaluate(0) == evaluate(2)


def test_what_is_on_stands_in_the_protocol_and_what_is_off_does_not(subject, geometry):
    plain, _ = FineTune(geometry, **ONCE).run(subject)
    regularised, _ = FineTune(geometry, **ONCE, **REGULARISED).run(subject)
    added = set(regularised.protocol) - set(plain.protocol)
    assert added == {"drop_path", "mixup", "cutmix", "rand_augment", "random_erasing", "min_lr"}
    assert {name: regularised.protocol[name] for name in REGULARISED} == REGULARISED


@pytest.mark.parametrize(("drop_path", "rate"), [(0.0, 0.2), (0.3, 0.3)])
def test_stochastic_depth_is_set_or_stays_as_in_pre_training(
    subject, geometry, monkeypatch, drop_path, rate
):
    trainings = record_training(monkeypatch)
    FineTune(geometry, **ONCE, drop_path=drop_path).run(subject)
    for network, _, _ in trainings:
        assert network.backbone.vit.blocks[-1].drop_path1.drop_prob == rate
    assert subject.pretrainer.encoder.blocks[-1].drop_path1.drop_prob == 0.2


def test_another_resolution_is_trained_and_judged(subject, geometry, monkeypatch):
    judged = []

    def score(network, images, *_, **__):
        judged.append((network, images))
        return Score({"accuracy": 0.5}, 1.0, "")

    trainings = record_training(monkeypatch)
    monkeypatch.setattr("mimkit.evaluate.trainer.score_classifier", score)
    FineTune(geometry, **ONCE, image_size=24).run(subject)
    assert len(trainings) == len(judged) == 2
    for network, images in [*(training[:2] for training in trainings), *judged]:
        assert network.backbone.vit.grid == Grid(6, 6, 4)
        assert images[0][1]["image"].shape[2:] == (24, 24)
        assert network(torch.randn(2, 3, 24, 24)).shape == (2, 10)


def test_the_learning_rate_ends_near_the_least(subject, geometry, monkeypatch):
    rates = []
    monkeypatch.setattr(
        "mimkit.evaluate.classifier.set_learning_rate", lambda _, lr: rates.append(lr)
    )
    options = {**ONCE, "total_steps": 20, "baseline": False}
    FineTune(geometry, **options, min_lr=0.004).run(subject)
    assert max(rates) == 0.01
    assert 0.004 <= rates[-1] < 0.0041


def test_randaugment_takes_the_place_of_the_colour_jitter(subject, geometry, monkeypatch):
    trainings = record_training(monkeypatch)
    jittered = dataclasses.replace(
        subject, augment=dataclasses.replace(subject.augment, color_jitter=0.4)
    )
    FineTune(geometry, **ONCE, baseline=False).run(jittered)
    FineTune(geometry, **ONCE, baseline=False, rand_augment="rand-m9").run(jittered)
    (_, plain, _), (_, augmented, _) = trainings
    assert plain[0][2] is not None
    assert augmented[0][2] is None
    assert augmented.augment.flip
    assert not torch.equal(plain[0][1]["image"], augmented[0][1]["image"])


def test_batches_are_mixed_as_asked(subject, geometry, monkeypatch):
    trainings = record_training(monkeypatch)
    for options in ({}, {"mixup": 0.8}, {"cutmix": 1.0}, {"random_erasing": 0.5}):
        FineTune(geometry, **ONCE, baseline=False, **options).run(subject)
    none, mixup, cutmix, erasing = (options["mixing"] for _, _, options in trainings)
    assert none is None
    assert (mixup.mix.mixup_alpha, mixup.mix.cutmix_alpha, mixup.random_erasing) == (0.8, 0, 0)
    assert (cutmix.mix.mixup_alpha, cutmix.mix.cutmix_alpha, cutmix.mix.num_classes) == (0, 1, 10)
    assert (erasing.mix, erasing.random_erasing) == (None, 0.5)


def test_every_step_is_mixed_with_a_seed_of_its_own(subject, geometry, monkeypatch):
    seeds, labels = [], []

    def mix(self, image, truth, seed):
        seeds.append(seed)
        labels.append(truth)
        return image, truth

    monkeypatch.setattr("mimkit.evaluate.mixing.Mixing.__call__", mix)
    FineTune(geometry, **ONCE, mixup=0.8).run(subject)
    ours, scratch = seeds[:3], seeds[3:]
    assert len(set(ours)) == 3
    assert ours == scratch
    assert torch.equal(torch.cat(labels[:3]), torch.cat(labels[3:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.02}, "min_lr: must be at most the least of lrs, 0.01, but is 0.02"),
        ({"mixup": 0.8, "batch_size": 7}, "batch_size: must be even with mixup or cutmix"),
        ({"rand_augment": "randm9"}, "rand_augment: must be written as in timm"),
        ({"image_size": 18}, "image_size: must be a multiple of the patches' 4 px, but is 18"),
        ({"image_size": 0}, "image_size: must be a multiple of the patches' 4 px, but is 0"),
        ({"image_size": 24, "network": "pooled"}, "must not be given with network 'pooled'"),
    ],
)
def test_options_that_cannot_be_are_refused(geometry, options, message):
    with pytest.raises(RecipeError, match=message):
        FineTune(geometry, **(ONCE | options))


def test_stochastic_depth_of_a_network_without_it_is_refused_before_training(
    subject, geometry, monkeypatch
):
    monkeypatch.setattr(
        type(subject.pretrainer.encoder), "backbone", lambda self, grid=None: Forgetful()
    )
    state = torch.get_rng_state()
    with pytest.raises(RecipeError, match="no stochastic depth, so drop_path must be 0"):
        FineTune(geometry, **ONCE, drop_path=0.1).check(subject)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5}])
def test_on_a_gpu_no_step_waits_for_the_device(subject, geometry, options):
    device = torch.device("cuda")
    evaluator = FineTune(geometry, **{**QUICK, "total_steps": 20}, **options)
    source, labels = subject.train.to(device), subject.train.labels.to(device)
    images = TrainingImages(source, torch.arange(120), subject.views[:1], 8, subject.augment, 0)
    network = Classifier(subject.pretrainer.encoder.backbone(), 10).to(device)

    def train():
        train_classifier(
            network,
            images,
            labels,
            evaluator.train,
            label_smoothing=0.1,
            layer_decay=0.75,
            mixing=evaluator.mixing(10),
            device=device,
            workers=0,
        )

    train()  # sends the constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
