"""Segmentation: its parts against scikit-learn and resampling, its whole by behaviour."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score
from test_resume_recipes import miniature
from torch import nn

from mimkit import Subject
from mimkit.data.opening import open_sources
from mimkit.data.pixels.augment import Augment
from mimkit.data.truth.records import IGNORED
from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.cells import Cell
from mimkit.evaluate.image_scores import unpack
from mimkit.evaluate.segmentation.confusion import Overlap, confusion
from mimkit.evaluate.segmentation.crops import Crops, short_side
from mimkit.evaluate.segmentation.evaluator import Segmentation
from mimkit.evaluate.segmentation.network import Heads
from mimkit.evaluate.segmentation.training import SegmentationTrainer, poly, score_of
from mimkit.evaluate.segmentation.windows import places, predictions
from mimkit.evaluate.statistics import summarise
from mimkit.evaluate.upernet import LinearHead
from mimkit.parts.dense import Level
from mimkit.parts.records import View
from mimkit.recipe.build import build
from mimkit.recipe.sections import DataSection
from mimkit.train.step import Pretrainer

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))
QUICKLY = {"mae_cifar", "beit_cifar", "cae_cifar", "selfie_cifar"}
QUICK = {"total_steps": 3, "batch_size": 4, "warmup_steps": 1, "seeds": 1}
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def objects():
    section = DataSection(
        name="objects", image_size=32, patch_size=4, num_images=40, num_test_images=12
    )
    return open_sources(section)


@pytest.fixture
def dense_subject(subject, objects):
    """A tiny encoder of 16 px images, judged on pictures of 32 px with masks."""
    return replace(subject, train=objects[0], test=objects[1])


def cells(subject):
    path = subject.workdir / "cells.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def overlap_of(truths, predictions_, num_classes):
    counts = []
    for truth, predicted in zip(truths, predictions_, strict=True):
        matrix = confusion(truth, predicted, num_classes)
        common = matrix.diagonal()
        counts.append(torch.stack([common, matrix.sum(0) + matrix.sum(1) - common, matrix.sum(1)]))
    return Overlap(*torch.stack(counts).double().unbind(1))


# -------------------------------------------------------------------------------------- scores


@given(data=st.data(), num_classes=st.integers(2, 6), num_images=st.integers(1, 4))
def test_scores_are_those_of_scikit_learn(data, num_classes, num_images):
    shape = (num_images, 5, 4)
    draw = st.lists(st.integers(-1, num_classes - 1), min_size=20, max_size=20)
    truth = np.array([data.draw(draw) for _ in range(num_images)]).reshape(shape)
    truth[0, 0, 0] = 0  # something is judged
    found = np.array([data.draw(draw) for _ in range(num_images)]).reshape(shape).clip(0)
    overlap = overlap_of(torch.from_numpy(truth), torch.from_numpy(found), num_classes)
    judged = truth >= 0
    present = np.unique(truth[judged])
    expect = {
        "miou": jaccard_score(
            truth[judged], found[judged], labels=present, average="macro", zero_division=0
        ),
        "pixel_accuracy": accuracy_score(truth[judged], found[judged]),
        "mean_accuracy": recall_score(
            truth[judged], found[judged], labels=present, average="macro", zero_division=0
        ),
    }
    classes = tuple(map(str, range(num_classes)))
    score = score_of(overlap, classes)
    assert score.metrics == pytest.approx(expect)
    assert list(score.parts) == [classes[each] for each in present]
    assert np.mean(list(score.parts.values())) == pytest.approx(expect["miou"])
    matrix = confusion(torch.from_numpy(truth), torch.from_numpy(found), num_classes)
    official = confusion_matrix(truth[judged], found[judged], labels=range(num_classes))
    np.testing.assert_array_equal(matrix.numpy(), official)


def test_what_images_score_has_the_mean_and_the_error_of_the_whole():
    """The error is held against drawing the images again with replacement."""
    generator = torch.Generator().manual_seed(0)
    num_images, num_classes = 150, 4
    truth = torch.randint(-1, num_classes, (num_images, 12, 12), generator=generator)
    # Some images are hard, and some classes are rare in some images.
    hard = torch.rand(num_images, generator=generator)[:, None, None]
    wrong = torch.rand(truth.shape, generator=generator) < hard
    truth = torch.where((hard > 0.7) & (truth == 3), 0, truth)
    found = torch.where(wrong, torch.randint(0, 4, truth.shape, generator=generator), truth.clip(0))
    overlap = overlap_of(truth, found, num_classes)
    scores = overlap.by_image()
    values = {
        "miou": lambda one: one.mean_iou,
        "pixel_accuracy": lambda one: one.pixel_accuracy,
        "mean_accuracy": lambda one: one.mean_accuracy,
    }
    assert scores.keys() == values.keys()
    again = {name: [] for name in values}
    for _ in range(2000):
        rows = torch.randint(0, num_images, (num_images,), generator=generator)
        drawn = Overlap(overlap.common[rows], overlap.either[rows], overlap.true[rows])
        for name, value in values.items():
            again[name].append(value(drawn))
    for name, value in values.items():
        assert float(scores[name].mean()) == pytest.approx(value(overlap), abs=1e-12)
        error = float(scores[name].std() / num_images**0.5)
        assert error == pytest.approx(np.std(again[name]), rel=0.08), name


# -------------------------------------------------------------------------------------- crops


def crops(source, **changes):
    options = {
        "source": source,
        "index": torch.arange(len(source)),
        "view": View("image", (24, 16), **NORMAL),
        "side": None,
        "scale": (1.0, 1.0),
        "most_of_one": 1.0,
        "flip": False,
        "distort": False,
        "batch_size": 4,
        "seed": 3,
    }
    return Crops(**{**options, **changes})


def first(crops_, count=1):
    return list(crops_.stream(count, workers=0, device=torch.device("cpu")))


def places_of(image, mask, whole, whole_mask):
    """Where in a whole picture a crop with its mask is found, by trying all places."""
    rows, cols = mask.shape
    return [
        (y, x)
        for y in range(whole.shape[1] - rows + 1)
        for x in range(whole.shape[2] - cols + 1)
        if torch.allclose(whole[:, y : y + rows, x : x + cols], image, atol=1e-5)
        and torch.equal(whole_mask[y : y + rows, x : x + cols], mask)
    ]


@pytest.mark.parametrize("flip", [False, True])
def test_image_and_mask_are_cut_and_mirrored_together(objects, flip):
    train, _ = objects
    pixels = (train.pixels.float() / 255 - 0.5) / 0.25
    turned = 0
    for images, masks in first(crops(train, flip=flip), 5):
        for image, mask in zip(images, masks, strict=True):
            here, mirrored = [], []
            for number in range(len(train)):
                whole = torch.from_numpy(train.masks(number))
                here += places_of(image, mask, pixels[number], whole)
                mirrored += places_of(image.flip(2), mask.flip(1), pixels[number], whole)
            assert here or mirrored
            turned += bool(mirrored and not here)
    assert 0 < turned < 20 if flip else not turned


def test_batches_follow_from_seed_and_step_alone(objects):
    train, _ = objects
    options = {"scale": (0.5, 2.0), "flip": True, "distort": True, "most_of_one": 0.75}
    one, two = first(crops(train, **options), 3), first(crops(train, **options), 3)
    state = torch.random.get_rng_state()
    processes = list(crops(train, **options).stream(3, workers=2, device=torch.device("cpu")))
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b, c in zip(one, two, processes, strict=True):
        assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(a, b, c, strict=True))
    other = first(crops(train, **{**options, "seed": 4}), 1)[0]
    assert not torch.equal(one[0][0], other[0])


def test_what_lies_outside_an_image_is_the_mean_and_not_judged(objects):
    train, _ = objects
    ((images, masks),) = first(crops(train, view=View("image", (48, 40), **NORMAL)))
    assert (masks[:, 32:] == IGNORED).all()
    assert (masks[:, :, 32:] == IGNORED).all()
    assert (masks[:, :32, :32] != IGNORED).all()
    assert images[:, :, 32:].abs().max() < 0.01
    assert images[:, :, :32, :32].abs().max() > 0.5


def test_masks_are_scaled_without_mixing_classes(objects):
    train, _ = objects
    for _, masks in first(crops(train, scale=(0.5, 2.0)), 5):
        assert set(masks.unique().tolist()) <= set(range(10)) | {IGNORED}


def test_a_crop_of_nearly_one_class_is_drawn_again(objects):
    train, _ = objects
    view = View("image", (8, 8), **NORMAL)

    def full(most):
        masks = torch.cat([m for _, m in first(crops(train, view=view, most_of_one=most), 30)])
        counts = torch.stack([torch.bincount(m.flatten(), minlength=10) for m in masks])
        return float((counts.max(1).values > 0.75 * 64).float().mean())

    assert full(0.75) < full(1.0) / 3


# ------------------------------------------------------------------------------------- windows


@given(length=st.integers(1, 200), window=st.integers(1, 100))
def test_windows_cover_a_side(length, window):
    found = places(length, window)
    covered = np.zeros(length, dtype=bool)
    for start in found:
        covered[start : start + window] = True
        assert start + window <= max(length, window)
    assert covered.all()
    assert found == sorted(set(found))


class Brightness(nn.Module):
    """Says of every pixel alone whether it is bright, so that windows can change nothing."""

    def forward(self, image):
        mean = image.mean(dim=1, keepdim=True)
        return torch.cat([-mean, mean], dim=1)


@pytest.mark.parametrize("window", [(32, 32), (16, 20), (40, 24), (48, 48)])
def test_windows_are_put_together_where_they_were(objects, window):
    _, test = objects
    view = View("image", window, **NORMAL)
    pairs = predictions(
        Brightness(),
        test,
        [3, 1, 7],
        view=view,
        side=None,
        num_classes=2,
        device=torch.device("cpu"),
    )
    for index, (truth, predicted) in zip([3, 1, 7], pairs, strict=True):
        bright = (test.pixels[index].float() / 255 - 0.5).mean(0) > 0
        assert torch.equal(predicted, bright.long())
        np.testing.assert_array_equal(truth.numpy(), test.masks(index))


def test_images_are_judged_at_their_full_size(objects):
    """Seen at half their size, they still are judged pixel by pixel of their own masks."""
    _, test = objects
    view = View("image", (16, 16), **NORMAL)
    ((truth, predicted),) = predictions(
        Brightness(), test, [0], view=view, side=16, num_classes=2, device=torch.device("cpu")
    )
    assert truth.shape == predicted.shape == (32, 32)


@settings(max_examples=50)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300))
def test_the_short_side_becomes_what_was_asked(height, width, side):
    found = short_side((height, width), side)
    assert min(found) == side
    assert found[0] / found[1] == pytest.approx(height / width, rel=0.5 / side + 0.02)


def test_the_rate_falls_as_torchs_own_schedule():
    parameter = nn.Parameter(torch.zeros(1))
    for power in (1.0, 0.9):
        optimizer = torch.optim.SGD([parameter], lr=0.3)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=power)
        for step in range(20):
            ours = poly(step, total=20, warmup=0, peak=0.3, power=power)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()


# ------------------------------------------------------------------------------------ the whole


@pytest.mark.parametrize("head", ["linear", "upernet"])
@pytest.mark.parametrize("frozen", [True, False])
def test_every_result_has_its_baseline(dense_subject, geometry, head, frozen):
    evaluator = Segmentation(geometry, head=head, frozen=frozen, width=8, **{**QUICK, "seeds": 2})
    evaluator.check(dense_subject)
    before = {k: v.clone() for k, v in dense_subject.pretrainer.state_dict().items()}
    results = evaluator.run(dense_subject)
    baseline = "random" if frozen else "scratch"
    assert {(r.metric, r.init, r.seed) for r in results} == {
        (metric, init, seed)
        for metric in ("miou", "pixel_accuracy", "mean_accuracy")
        for init in ("pretrained", baseline)
        for seed in (0, 1)
    }
    for result in results:
        assert 0 <= result.value <= 1
        assert (result.protocol["head"], result.protocol["frozen"]) == (head, frozen)
        assert unpack(result.image_scores).mean() == pytest.approx(result.value, abs=1e-6)
        if result.metric == "miou":
            assert np.mean(list(result.parts.values())) == pytest.approx(result.value)
    after = dense_subject.pretrainer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(entry["low"] is not None for entry in summarise(results)["differences"])


def test_finished_cells_are_not_trained_again(dense_subject, geometry, monkeypatch):
    first_time = Segmentation(geometry, **QUICK).run(dense_subject)
    monkeypatch.setattr(SegmentationTrainer, "fit", lambda *_: pytest.fail("trained again"))
    assert Segmentation(geometry, **QUICK).run(dense_subject) == first_time
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        Segmentation(geometry, **{**QUICK, "scale": (1.0, 1.0)}).run(dense_subject)


def test_a_killed_evaluation_goes_on_to_the_same_numbers(dense_subject, geometry, tmp_path):
    whole = Segmentation(geometry, **{**QUICK, "seeds": 2}).run(
        replace(dense_subject, workdir=tmp_path / "whole")
    )

    class KilledError(Exception):
        pass

    def report(text):
        if "scratch" in text or "random" in text:
            raise KilledError

    killed = replace(dense_subject, workdir=tmp_path / "killed")
    with pytest.raises(KilledError):
        Segmentation(geometry, **{**QUICK, "seeds": 2}).run(replace(killed, report=report))
    assert Segmentation(geometry, **{**QUICK, "seeds": 2}).run(killed) == whole


def test_the_rate_is_chosen_on_the_masks_that_a_row_has(dense_subject, geometry):
    lrs = (1e-9, 3e-3)
    options = {**QUICK, "total_steps": 30}
    results = Segmentation(geometry, lrs=lrs, label_fractions=(0.5,), **options).run(dense_subject)
    searched = [cell for cell in cells(dense_subject) if cell["split"] == "development"]
    assert {(cell["init"], cell["lr"]) for cell in searched} == {
        (init, lr) for init in ("pretrained", "random") for lr in lrs
    }
    assert {result.chosen["lr"] for result in results} <= set(lrs)
    assert {result.protocol["num_labels"] for result in results} == {20}


def test_a_frozen_backbone_stays_as_it_is_and_a_free_one_learns(dense_subject, geometry):
    for frozen in (True, False):
        heads = Heads("upernet", frozen, 8, "group")
        backbone = dense_subject.pretrainer.encoder.dense()
        network = heads.on(backbone, 10)
        before = [p.clone() for p in backbone.parameters()]
        evaluator = Segmentation(geometry, head="upernet", frozen=frozen, **QUICK)
        trainer = evaluator.trainer(dense_subject, evaluator.subsets(dense_subject))
        trainer.fit(network, Cell("pretrained", 0, 1.0, {"lr": 0.01}), torch.arange(40), 3)
        after = list(backbone.parameters())
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same is frozen


def test_it_learns_what_a_pixel_shows(dense_subject, geometry, tmp_path, monkeypatch):
    """Three colours, a class each, in two bands whose border lies anywhere."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    for split, count in (("train", 24), ("test", 8)):
        for kind in ("images", "masks"):
            (tmp_path / "bands" / split / kind).mkdir(parents=True)
        for number in range(count):
            ids = np.full((32, 40), random.integers(3), dtype=np.uint8)
            ids[:, random.integers(8, 32) :] = random.integers(3)
            pixels = (colours[ids] + random.normal(0, 20, (32, 40, 3))).clip(0, 255)
            folder = tmp_path / "bands" / split
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
            Image.fromarray(ids).save(folder / "masks" / f"{number}.png")
    section = DataSection(name=str(tmp_path / "bands"), image_size=16, patch_size=4)
    train, test = open_sources(section)
    options = {"head": "upernet", "frozen": False, "width": 16, "seeds": 1, "baseline": False}
    evaluator = Segmentation(
        geometry, total_steps=60, batch_size=8, lrs=(3e-3,), warmup_steps=5, **options
    )
    miou = evaluator.run(replace(dense_subject, train=train, test=test))[0]
    assert miou.value > 0.8


def test_predictions_are_kept_to_be_looked_at(dense_subject, geometry):
    Segmentation(geometry, **QUICK).run(dense_subject)
    shown = dense_subject.workdir / "shown"
    folders = [each for each in shown.iterdir() if each.is_dir()]
    assert {each.name for each in folders} == {"image", "truth", "pretrained", "random"}
    assert list(json.loads((shown / "colours.json").read_text())) == list(
        dense_subject.test.masks.classes
    )
    numbers = [sorted(path.name for path in each.glob("*.png")) for each in folders]
    assert numbers == 4 * [numbers[0]]
    assert len(numbers[0]) == 6
    for name in numbers[0]:
        index = int(name.removesuffix(".png"))
        image = np.asarray(Image.open(shown / "image" / name))
        np.testing.assert_array_equal(image, np.asarray(dense_subject.test.image(index)))
        truth = np.asarray(Image.open(shown / "truth" / name)).astype(float) - 0.4 * image
        classes = dense_subject.test.masks(index)
        tones = [truth[classes == each] for each in np.unique(classes)]
        assert all(np.ptp(tone, axis=0).max() <= 1 for tone in tones)  # one colour a class


def test_a_linear_head_reads_features_of_any_scale():
    """Without a norm others' probes lost ten points on features that are small or large."""
    torch.manual_seed(0)
    head = LinearHead(Level(8, 4), 3).train()
    head.dropout.p = 0.0
    features = torch.randn(6, 8, 5, 7)
    plain = head(features)
    for factor in (0.1, 1e3):
        torch.testing.assert_close(head(factor * features + 4), plain, rtol=2e-3, atol=2e-3)


def test_what_cannot_be_done_is_refused_by_name(dense_subject, subject, geometry):
    with pytest.raises(DataError, match="'segmentation' needs masks, but the train split of"):
        Segmentation(geometry).check(subject)
    with pytest.raises(RecipeError, match="image_size: must be multiples of the patches' 4 px"):
        Segmentation(geometry, image_size=30)
    with pytest.raises(RecipeError, match="scale: must ascend"):
        Segmentation(geometry, scale=(2.0, 0.5))
    with pytest.raises(RecipeError, match="at least 3 values per channel"):
        Segmentation(geometry, head="upernet", batch_size=2).check(dense_subject)


def test_another_grid_than_that_of_pre_training_not_square(dense_subject, geometry):
    options = {**QUICK, "image_size": (24, 32), "baseline": False}
    results = Segmentation(geometry, head="upernet", width=8, **options).run(dense_subject)
    assert results[0].protocol["crop"] == "32 x 24"


def test_work_counts_seconds(dense_subject, geometry):
    few = Segmentation(geometry, **QUICK).work(dense_subject).seconds
    many = Segmentation(geometry, **{**QUICK, "total_steps": 3000}).work(dense_subject).seconds
    assert many > 20 * few > 0


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICKLY else [pytest.mark.slow])
        for path in RECIPES
    ],
)
def test_the_encoder_of_every_shipped_recipe_can_segment(path, objects, tmp_path):
    """Trained and judged on another grid than its own, which is not square."""
    recipe = miniature(path)
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3)
    patch = parts.geometry.grid.patch_size
    subject = Subject(
        pretrainer=Pretrainer(parts),
        masker=parts.masker,
        views=parts.views,
        train=objects[0],
        test=objects[1],
        augment=Augment.none(),
        device=torch.device("cpu"),
        seed=0,
        batch_size=4,
        fresh=lambda seed: Pretrainer(build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3)),
        workdir=tmp_path,
        report=lambda _: None,
    )
    options = {"image_size": (2 * patch, 3 * patch), "frozen": False, "num_test_images": 3}
    evaluator = Segmentation(parts.geometry, **{**QUICK, **options})
    evaluator.check(subject)
    results = evaluator.run(subject)
    assert {result.init for result in results} == {"pretrained", "scratch"}
    assert all(0 <= result.value <= 1 for result in results)
